"""Count instructions by Linux's perf events, in a host whose time is instructions.

The clock of such a host jumps to the next timer when its only CPU is idle, for example while it
waits for a disk. The CPU's own counter does not: QEMU's PMU returns the instructions that the CPU
has executed (target/arm/helper.c, instructions_get_count), and an idle CPU executes none.

The counter covers every exception level: the VMM's threads, the kernel on their behalf, and their
guests. A counter of one process would cost instructions at each switch between threads.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

# Source: linux/perf_event.h, asm-generic/unistd.h
SYS_PERF_EVENT_OPEN: Final = 241
PERF_TYPE_HARDWARE: Final = 0
PERF_COUNT_HW_INSTRUCTIONS: Final = 1
PERF_ATTR_SIZE_VER1: Final = 72
PERF_FLAG_FD_CLOEXEC: Final = 1 << 3
PARANOID: Final = "/proc/sys/kernel/perf_event_paranoid"  # -1 in a host where every user may count


# A struct perf_event_attr with all bit fields 0: enabled, nothing excluded
ATTRIBUTES: Final = struct.pack(
    "=II8Q", PERF_TYPE_HARDWARE, PERF_ATTR_SIZE_VER1, PERF_COUNT_HW_INSTRUCTIONS, *[0] * 7
)


class Counter:
    """The instructions of CPU 0 since the counter was made."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        attr = ctypes.create_string_buffer(ATTRIBUTES)
        # of every process, on CPU 0, in no group
        arguments = (ctypes.c_long(value) for value in (-1, 0, -1, PERF_FLAG_FD_CLOEXEC))
        self._fd = int(libc.syscall(ctypes.c_long(SYS_PERF_EVENT_OPEN), attr, *arguments))
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"perf_event_open: {os.strerror(code)}")

    def read(self) -> int:
        """Return the count."""
        (count,) = struct.unpack("=Q", os.read(self._fd, 8))
        return int(count)

    def close(self) -> None:
        """Stop counting."""
        os.close(self._fd)
