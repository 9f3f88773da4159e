"""The programs for an arm64 host, as they are built."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from tests.guests.test_build import instructions, is_fp, is_sve

SOURCES = Path(__file__).resolve().parents[2] / "programs"
HOLDERS = ("sve_hold", "sve_rdvl")


@pytest.fixture(scope="module")
def built(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of newly built programs."""
    out, build = (tmp_path_factory.mktemp(name) for name in ("programs", "build"))
    command = [
        "make",
        "-C",
        str(SOURCES),
        f"CC={os.path.relpath(cross_gcc, SOURCES)}",
        f"OUT={out}",
        f"BUILD={build}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def watcher(built: Path) -> Iterator[Any]:
    with (built / "sve-watcher").open("rb") as file:
        yield ELFFile(file)


def test_only_the_holder_s_functions_use_sve(watcher: Any) -> None:
    symbols = {s.name: s for s in watcher.get_section_by_name(".symtab").iter_symbols()}
    holders = [
        range(symbols[name]["st_value"], symbols[name]["st_value"] + symbols[name]["st_size"])
        for name in HOLDERS
    ]
    used = [address for address, word in instructions(watcher) if is_sve(word) or is_fp(word)]

    assert len(used) > 2 * (32 + 16)
    assert all(any(address in holder for holder in holders) for address in used)


@pytest.mark.parametrize("name", ["sve-watcher", "code-patcher"])
def test_program_is_static(built: Path, name: str) -> None:
    with (built / name).open("rb") as file:
        segments = list(ELFFile(file).iter_segments())

    assert {"PT_INTERP", "PT_DYNAMIC"}.isdisjoint(s["p_type"] for s in segments)
    # Linux 5.10 cannot start a program whose writable segment has no bytes in the file.
    assert all(s["p_filesz"] for s in segments if s["p_type"] == "PT_LOAD")
