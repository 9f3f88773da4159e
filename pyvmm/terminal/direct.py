"""A second descriptor of a guest's output, for code in C: writes to it never block.

A pipe or a terminal is opened once more: O_NONBLOCK belongs to the opening, and the first one is
shared with other processes. A file is not opened again: that would write from its first byte on.
"""

from __future__ import annotations

import os
import stat

from pyvmm.base.records import Record

NULL = os.makedev(1, 3)  # /dev/null.  Source: Linux, Documentation/admin-guide/devices.txt


class Direct(Record):
    """A descriptor, and a byte that is 0 while all earlier output is written to it."""

    fd: int
    busy: bytearray


def open_again(fd: int) -> int | None:
    """Open a descriptor's file for writes that never block; None if there is no way to."""
    about = os.fstat(fd)
    if not stat.S_ISFIFO(about.st_mode) and not os.isatty(fd):
        return os.dup(fd) if not os.get_blocking(fd) or about.st_rdev == NULL else None
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:  # another user's, or there is no /proc
        return None
