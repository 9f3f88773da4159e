"""The emulated host's clocks and timers across a save.

QEMU (5.2 to 11) does not save the timers of EL2, and a VHE kernel uses one for its ticks.  After
a restore that timer never fires.  A CPU that waits for its next tick then waits for ever, and so
does every RCU grace period, for example in a mount.

Linux programs the timer again when CLOCK_REALTIME is set past a pending timer.  It does so on
every *other* CPU with such a timer (kernel/time/hrtimer.c, clock_was_set).  So each CPU gets one
before the save.  After the restore, each of two CPUs sets the clock past the timers and then back:
the second CPU makes Linux program the first one's timer.  An emulated host has at least two CPUs.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from typing import Final

AHEAD_S: Final = 1_000_000  # when the timers are due: long after any restore
TFD_TIMER_ABSTIME: Final = 1  # Source: uapi/linux/timerfd.h
CHECK_S: Final = 0.001


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2)]


def leave_timers() -> None:
    """Start a timer on every CPU; after that the host can be saved."""
    libc = ctypes.CDLL(None, use_errno=True)
    due = _Itimerspec(value=(int(time.time()) + AHEAD_S, 0))
    for _ in _every_cpu():
        fd = libc.timerfd_create(time.CLOCK_REALTIME, os.O_CLOEXEC)
        if fd < 0 or libc.timerfd_settime(fd, TFD_TIMER_ABSTIME, ctypes.byref(due), None):
            error = ctypes.get_errno()
            raise OSError(error, f"timerfd: {os.strerror(error)}")


def correct(now_ns: int) -> None:
    """Set the real-time clock of a restored host, and wait until the timers of all CPUs work."""
    began_ns = time.monotonic_ns()
    past_all = max(time.time_ns(), now_ns) + 2 * AHEAD_S * 1_000_000_000
    for _ in _every_cpu():
        time.clock_settime_ns(time.CLOCK_REALTIME, past_all)
        time.clock_settime_ns(time.CLOCK_REALTIME, now_ns + time.monotonic_ns() - began_ns)
    for _ in _every_cpu():
        time.sleep(CHECK_S)


def _every_cpu() -> Iterator[int]:
    """Run on each CPU in turn, and then on all of them again."""
    cpus = os.sched_getaffinity(0)
    try:
        for cpu in sorted(cpus):
            os.sched_setaffinity(0, {cpu})
            yield cpu
    finally:
        os.sched_setaffinity(0, cpus)
