"""The real-time clock's alarm, in a machine's loop."""

from __future__ import annotations

import time

from pyvmm.base.loop import Loop, Timer
from pyvmm.devices.pl031 import Pl031


class Alarm:
    """Makes the real-time clock's alarm go off in time."""

    def __init__(self, rtc: Pl031, loop: Loop) -> None:
        self._rtc = rtc
        self._loop = loop
        self._timer: Timer | None = None
        self._rtc.on_rearm = lambda: loop.call(self._set)
        loop.call(self._set)  # a clock out of a snapshot may have its alarm set

    def stop(self) -> None:
        """Leave the loop alone from now on."""
        self._rtc.on_rearm = None

    def _set(self) -> None:
        if self._timer is not None:
            self._loop.cancel(self._timer)
            self._timer = None
        due = self._rtc.next_alarm()
        if due is not None:
            self._timer = self._loop.after(due - time.time(), self._go_off)

    def _go_off(self) -> None:
        self._rtc.tick()
        self._set()
