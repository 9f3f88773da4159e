"""The programs for an arm64 host, as they are built."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from tests.guests.test_build import instructions, is_fp, is_sve

SOURCES = Path(__file__).resolve().parents[2] / "programs"
HOLDERS = ("sve_hold", "sve_rdvl")


@pytest.fixture(scope="module")
def watcher(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out, build = (tmp_path_factory.mktemp(name) for name in ("programs", "build"))
    command = ["make", "-C", str(SOURCES), f"CC={cross_gcc}", f"OUT={out}", f"BUILD={build}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (out / "sve-watcher").open("rb") as file:
        yield ELFFile(file)


def test_sve_is_used_by_the_holder_alone(watcher: Any) -> None:
    symbols = {s.name: s for s in watcher.get_section_by_name(".symtab").iter_symbols()}
    start = symbols["sve_hold"]["st_value"]
    end = symbols["_start"]["st_value"]
    used = [address for address, word in instructions(watcher) if is_sve(word) or is_fp(word)]

    assert set(HOLDERS) <= symbols.keys()
    assert len(used) > 2 * (32 + 16)
    assert all(start <= address < end for address in used)


def test_it_needs_nothing_else(watcher: Any) -> None:
    segments = [segment["p_type"] for segment in watcher.iter_segments()]

    assert "PT_INTERP" not in segments and "PT_DYNAMIC" not in segments
    # Linux 5.10 does not start a program whose writable segment is not in the file at all.
    assert all(s["p_filesz"] for s in watcher.iter_segments() if s["p_type"] == "PT_LOAD")
