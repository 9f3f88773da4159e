"""Checks of the paths and texts that a person, a file or another process names."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyvmm.errors import UsageError


def check_path(path: Path, name: str) -> None:
    """Check that the kernel can take a path; ``name`` is the path's name in messages.

    Raises: UsageError.
    """
    try:
        has_nul = b"\0" in os.fsencode(path)
    except UnicodeEncodeError:
        raise UsageError(f"{name}={str(path)[:80]!r}: no path has a lone surrogate") from None
    if has_nul:
        raise UsageError(f"{name}={str(path)[:80]!r}: a path cannot hold a NUL")


def is_storage(mode: int) -> bool:
    """Return whether a file of that mode is a regular file or a block device.

    Opening another device, such as a watchdog or a tape, can have side effects.
    """
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def is_utf8(text: str) -> bool:
    """Return whether a text can be encoded in UTF-8; other bytes of a command line cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
