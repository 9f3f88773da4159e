"""Names of addresses, compared with nm's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm.debugger.symbols import Symbols
from pyvmm.errors import UsageError
from pyvmm.host.parts import tools
from pyvmm.host.progress import Progress

MAP = """
ffff800008000000 T _text
ffff800008010000 T start_kernel
ffff800008010100 t rest_init
ffff800009000000 D linux_banner\t[module]
                 U undefined
not a line
"""


def test_map_names_addresses_with_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text(MAP)
    names = Symbols.open(path)

    assert len(names) == 4
    assert names.name(0xFFFF_8000_0801_001C) == "start_kernel+0x1c"
    assert names.name(0xFFFF_8000_0801_0100) == "rest_init"
    assert names.name(0xFFFF_8000_0900_0001) == "linux_banner+0x1"
    assert names.name(0x1000) == ""
    assert names.name(0xFFFF_9000_0000_0000) == ""


def test_elf_has_the_symbols_that_nm_shows(cross_gcc: Path, tmp_path: Path) -> None:
    source, elf = tmp_path / "a.c", tmp_path / "a.elf"
    source.write_text("int data[4] = {1}; int twice(int x) { return 2 * x; } int _start;")
    options = ["-nostdlib", "-static", "-Wl,-Ttext=0x80080000"]
    subprocess.run([str(cross_gcc), *options, "-o", str(elf), str(source)], check=True)
    nm = tools.cross("nm", Progress(quiet=True))
    shown = nm.run([str(elf)])
    at = {line.split()[2]: int(line.split()[0], 16) for line in shown.splitlines()}
    names = Symbols.open(elf)

    assert names.name(at["twice"] + 4) == "twice+0x4"
    assert names.name(at["data"] + 1) == "data+0x1"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no symbols"), (b"\x7fELF", "a damaged ELF file"), (b"\xff\xfe" * 99, "no symbols")],
)
def test_file_without_symbols_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=words):
        Symbols.open(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Symbols.open(tmp_path / "none")


def test_message_gets_the_symbol_of_its_pc() -> None:
    names = Symbols([(0x8008_0000, "_start"), (0x8008_0100, "main")])

    told = names.annotate("vCPU 0 at PC 0x80080104 left KVM; vCPU 1 at PC 0x10")

    assert told == "vCPU 0 at PC 0x80080104 in main+0x4 left KVM; vCPU 1 at PC 0x10"
