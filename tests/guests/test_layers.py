"""Calls between the C files of guests and host programs go down only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.guests.conftest import GUESTS, make

PROGRAMS = GUESTS.parent / "programs"


def symbols(path: Path) -> tuple[set[str], set[str]]:
    """Return the global names that an object file defines, and those of others that it uses."""
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = [symbol for symbol in table.iter_symbols() if symbol.name]
        outside = {symbol.name for symbol in found if symbol["st_shndx"] == "SHN_UNDEF"}
        shared = {symbol.name for symbol in found if symbol["st_info"]["bind"] != "STB_LOCAL"}
    return shared - outside, outside


def order(paths: Iterable[Path]) -> list[str]:
    """Return the files from the lowest layer up.

    Raises:
        CycleError: two of them need each other.
    """
    files = {path.stem: symbols(path) for path in paths}
    homes = {name: file for file, (defined, _) in files.items() for name in defined}
    needs = {
        file: {homes[name] for name in used if name in homes} for file, (_, used) in files.items()
    }
    return list(TopologicalSorter(needs).static_order())


def test_order_refuses_files_that_need_each_other(cross_gcc: Path, tmp_path: Path) -> None:
    for name, text in {"one": "one: bl other", "other": "other: bl one"}.items():
        (tmp_path / f"{name}.s").write_text(f".global {name}\n{text}\n")
    command: list[str | Path] = [cross_gcc, "-c", tmp_path / "one.s", tmp_path / "other.s"]
    subprocess.run(command, cwd=tmp_path, check=True)

    with pytest.raises(CycleError):
        order(tmp_path.glob("*.o"))


@pytest.mark.usefixtures("built")
def test_runtime_of_the_guests_has_layers(objects: Path) -> None:
    found = order((objects / "lib").glob("*.o"))

    assert len(found) == len({*(GUESTS / "lib").glob("*.[cS]")})
    assert found.index("uart") < found.index("panic") < found.index("runtime") < found.index("smp")


def test_programs_of_the_host_have_layers(cross_gcc: Path, tmp_path: Path) -> None:
    make(PROGRAMS, cross_gcc, tmp_path / "out", tmp_path / "build")

    found = order((tmp_path / "build").glob("*.o"))

    assert len(found) == len({*PROGRAMS.glob("*.[cS]")})
    assert found.index("sve-holder") < found.index("sve-tracer") < found.index("sve-watcher")
