"""Inside the emulated host: clocks and timers across a save.

QEMU (5.2 to 11 alike) does not save the timers of EL2, and a VHE kernel's own ticks come from
one: after a restore the register says when, but nothing goes off.  A CPU that then waits for its
next tick waits for ever, and with it whatever needs an RCU grace period, a mount for one.

Linux programs the timer anew, on every *other* CPU that has a pending CLOCK_REALTIME timer, when
the clock is set past that timer (kernel/time/hrtimer.c, clock_was_set).  So one such timer is
left on each CPU before the save; after the restore the clock is set past them from one CPU, then
from a second for the first one's sake, and then right.  An emulated host has two CPUs at least.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from typing import Final

AHEAD_S: Final = 1_000_000  # where the timers are left: no host waits that long to be restored
TFD_TIMER_ABSTIME: Final = 1  # Source: uapi/linux/timerfd.h
CHECK_S: Final = 0.001


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2)]


def leave_timers() -> None:
    """Leave a pending timer on every CPU; the host can be saved then."""
    libc = ctypes.CDLL(None, use_errno=True)
    due = _Itimerspec(value=(int(time.time()) + AHEAD_S, 0))
    for _ in _every_cpu():
        fd = libc.timerfd_create(time.CLOCK_REALTIME, os.O_CLOEXEC)
        if fd < 0 or libc.timerfd_settime(fd, TFD_TIMER_ABSTIME, ctypes.byref(due), None):
            error = ctypes.get_errno()
            raise OSError(error, f"timerfd: {os.strerror(error)}")


def set_right(now_ns: int) -> None:
    """Set the real-time clock of a restored host and wake its timers; returns when all work."""
    began_ns = time.monotonic_ns()
    past_all = max(time.time_ns(), now_ns) + 2 * AHEAD_S * 1_000_000_000
    for _ in _every_cpu():
        time.clock_settime_ns(time.CLOCK_REALTIME, past_all)
        time.clock_settime_ns(time.CLOCK_REALTIME, now_ns + time.monotonic_ns() - began_ns)
    for _ in _every_cpu():
        time.sleep(CHECK_S)


def _every_cpu() -> Iterator[int]:
    """Move to each CPU in turn, and back to all of them."""
    cpus = os.sched_getaffinity(0)
    try:
        for cpu in sorted(cpus):
            os.sched_setaffinity(0, {cpu})
            yield cpu
    finally:
        os.sched_setaffinity(0, cpus)
