"""Sizes as people write and read them."""

from __future__ import annotations

import re

from pyvmm.errors import UsageError
from pyvmm.layout import MIB

_SHIFT = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SIZE = re.compile(r"([0-9]{1,19})([BKMGTP]?)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read a size such as ``256``, ``256M`` or ``4G`` into bytes; a bare number is MiB.

    Raises: UsageError.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not a size",
            hint="write whole MiB, or a number with a suffix from B K M G T P: 256, 512M, 4G",
        )
    number, suffix = match.groups()
    return int(number) << _SHIFT[suffix.upper()] if suffix else int(number) * MIB


def show_size(size: int) -> str:
    """A size in the largest unit that keeps it whole: ``256 MiB``."""
    for suffix in "PTGMK":
        if size and size % (1 << _SHIFT[suffix]) == 0:
            return f"{size >> _SHIFT[suffix]} {suffix}iB"
    return f"{size} bytes"
