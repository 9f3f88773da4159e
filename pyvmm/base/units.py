"""Sizes, addresses and lists of CPUs, read and written as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from pyvmm.errors import UsageError

_Value = TypeVar("_Value")

_SHIFT = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SIZE_DIGITS = 19
_NUMBER = r"0x[0-9a-f]{1,32}|[0-9]{1,32}"  # not compiled: most runs do not need it
_CPU_DIGITS = 5


def parse_size(text: str) -> int:
    """Read a size such as ``256``, ``256M`` or ``4G`` into bytes; a bare number is MiB.

    Raises: UsageError.
    """
    written = text.strip()
    suffix = written[-1:].upper()
    number = written[:-1] if suffix in _SHIFT else written
    if not (number.isascii() and number.isdigit()):
        raise UsageError(
            f"{text!r} is not a size",
            hint="write whole MiB, or a number with a suffix from B K M G T P: 256, 512M, 4G",
        )
    if len(number) > _SIZE_DIGITS:
        raise UsageError(f"{text} is larger than any memory")
    return int(number) << _SHIFT.get(suffix, _SHIFT["M"])


def show_size(size: int) -> str:
    """Return a size in the largest unit that gives a whole number: ``256 MiB``."""
    for suffix in "PTGMK":
        if size and size % (1 << _SHIFT[suffix]) == 0:
            return f"{size >> _SHIFT[suffix]} {suffix}iB"
    return f"{size} bytes"


def parse_number(text: str, what: str) -> int:
    """Read a number, hexadecimal after 0x; ``what`` describes it in the error.

    Raises: UsageError.
    """
    match = re.fullmatch(_NUMBER, text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"{text!r} is not {what}", hint="write a number: 4096, 0x1000")
    return int(match[0], 0) if match[0][:2].lower() == "0x" else int(match[0])


def parse_memory(text: str) -> tuple[int, int | None]:
    """Read SIZE or SIZE@ADDR; an address is in bytes, or has a suffix like sizes.

    Raises: UsageError.
    """
    size, at, address = text.partition("@")
    if not at:
        return parse_size(size), None
    if address[-1:].upper() in _SHIFT and not address.lower().startswith("0x"):
        return parse_size(size), parse_size(address)
    return parse_size(size), parse_number(address, "an address")


def parse_cpulist(text: str) -> frozenset[int]:
    """Read a list of CPUs in the kernel's format: ``0-3,8,16-30:2``.

    Raises: UsageError.  Source: Documentation/admin-guide/cputopology.rst.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        lowest, dash, rest = part.strip().partition("-")
        highest, colon, apart = rest.partition(":")
        numbers = lowest, highest if dash else lowest, apart if colon else "1"
        if not all(map(_is_cpu, numbers)) or not int(numbers[2]):
            raise UsageError(f"{text!r} is not a list of CPUs", hint="write 0-3,8 or 0-14:2")
        first, last, step = map(int, numbers)
        if last < first:
            raise UsageError(f"{text!r} is not a list of CPUs: {part} goes backwards")
        cpus.update(range(first, last + 1, step))
    return frozenset(cpus)


def _is_cpu(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _CPU_DIGITS


def show_cpulist(cpus: Iterable[int]) -> str:
    """Return a list of CPUs with ranges: ``0-3,8``."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def read_named(name: str, read: Callable[[str], _Value], text: str) -> _Value:
    """Read text with a function of this module; add the name to the text of its UsageError."""
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error.message}", hint=error.hint) from error
