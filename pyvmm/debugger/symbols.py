"""Names of a guest's addresses, from an ELF file's symbol table or a kernel's System.map.

Source: System V ABI, "Symbol Table"; nm(1) for System.map's lines.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from pyvmm.base.records import Record
from pyvmm.errors import UsageError

ELF_MAGIC: Final = b"\x7fELF"
_LINE: Final = re.compile(r"([0-9a-fA-F]{8,16}) ([A-Za-z]) (\S+)(?:\s.*)?")
_PC: Final = re.compile(r"\bat PC (0x[0-9a-f]{1,16})\b")
NAMED: Final = ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE")
FARTHEST: Final = 1 << 24  # bytes after a symbol: what is farther belongs to something else
MAPPING: Final = re.compile(r"\$[xd](\..*)?")  # Source: AAELF64, "Mapping symbols"


class Names(Protocol):
    """Names of addresses."""

    def name(self, address: int) -> str:
        """Return an address as a symbol and an offset, start_kernel+0x1c; empty if unknown."""


class Known(Record):
    """The names of some addresses."""

    names: Mapping[int, str]

    def name(self, address: int) -> str:
        """Return the name of an address; empty if unknown."""
        return self.names.get(address, "")


def shown(name: str, offset: int) -> str:
    """Return a symbol and an offset, start_kernel+0x1c."""
    return f"{name}+{offset:#x}" if offset else name


class Symbols:
    """Names by address."""

    def __init__(self, named: Iterable[tuple[int, str]]) -> None:
        pairs = sorted(dict(named).items())
        self._addresses = [address for address, _ in pairs]
        self._names = [name for _, name in pairs]

    def __len__(self) -> int:
        return len(self._names)

    @classmethod
    def open(cls, path: Path) -> Symbols:
        """Read an ELF file or a System.map.

        Raises: UsageError, if it is neither, or has no symbols.
        """
        try:
            with path.open("rb") as file:
                is_elf = file.read(len(ELF_MAGIC)) == ELF_MAGIC
            found = cls(_of_elf(path) if is_elf else _of_map(path))
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
        if not found:
            raise UsageError(
                f"{path}: no symbols",
                hint="use an ELF file that is not stripped, such as vmlinux, or a System.map",
            )
        return found

    def name(self, address: int) -> str:
        """Return an address as a symbol and an offset, start_kernel+0x1c; empty if unknown."""
        at = bisect_right(self._addresses, address) - 1
        if at < 0 or address - self._addresses[at] > FARTHEST:
            return ""
        return shown(self._names[at], address - self._addresses[at])

    def annotate(self, message: str) -> str:
        """Return a message in which each "at PC 0x..." has the symbol too."""

        def named(match: re.Match[str]) -> str:
            name = self.name(int(match[1], 16))
            return f"{match[0]} in {name}" if name else match[0]

        return _PC.sub(named, message)


def _of_elf(path: Path) -> Iterable[tuple[int, str]]:
    from elftools.common.exceptions import ELFError  # imported lazily: it is large
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        with path.open("rb") as file:
            return [
                (int(one["st_value"]), str(one.name))
                for section in ELFFile(file).iter_sections()
                if isinstance(section, SymbolTableSection)
                for one in section.iter_symbols()
                if one.name and one["st_shndx"] != "SHN_UNDEF"
                if one["st_info"]["type"] in NAMED and not MAPPING.fullmatch(one.name)
            ]
    except (ELFError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: a damaged ELF file: {error}") from error


def _of_map(path: Path) -> Iterable[tuple[int, str]]:
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    matches = (match for line in lines if (match := _LINE.fullmatch(line)) is not None)
    return [(int(match[1], 16), match[3]) for match in matches if not MAPPING.fullmatch(match[3])]
