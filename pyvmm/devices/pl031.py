"""The PL031 real-time clock.

Source: Arm PrimeCell Real Time Clock (PL031) Technical Reference Manual, DDI 0224C, chapter 3;
Linux binds it by the identification registers (drivers/rtc/rtc-pl031.c).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from pyvmm.devices.device import Device, Irq, Reg
from pyvmm.devices.state import StateField

SECONDS = 0xFFFF_FFFF  # the counter is 32 bits wide
ALARM = 0x1  # the one bit of the interrupt registers
HOST_SECONDS = 1 << 40  # a bound of any host's time since 1970


class FastPath(Protocol):
    """Code that completes accesses without `Pl031`, from the state that `Pl031` publishes."""

    def publish(self, offset: int, alarm_at: int, registers: Sequence[int]) -> None:
        """Take over the clock's state, before its interrupt line changes; with its lock.

        ``offset`` and ``alarm_at`` are those of `Pl031`. ``registers`` are the values from DR to
        ICR. Until ``alarm_at`` they stay as they are; DR is the host's time plus ``offset``.
        """


class Pl031(Device):
    """A clock in seconds that starts at the host's time, with an alarm.

    The alarm is a comparison with the running clock: the machine calls `tick` at the time that
    `next_alarm` returns, and calls `next_alarm` again after ``on_rearm``. ``clock`` returns the
    seconds since 1970.
    """

    node_name = "rtc"
    compatible = ("arm,pl031", "arm,primecell")

    DR = Reg(0x000, "seconds now", ro=True)
    MR = Reg(0x004, "the alarm is due when DR reaches this")
    LR = Reg(0x008, "set the clock, seconds")
    CR = Reg(0x00C, "bit 0: running; cannot be stopped", ro=True, reset=1)
    IMSC = Reg(0x010, "bit 0: the alarm interrupts")
    RIS = Reg(0x014, "bit 0: the alarm is due", ro=True)
    MIS = Reg(0x018, "bit 0: the interrupt is raised", ro=True)
    ICR = Reg(0x01C, "writing bit 0 clears the alarm", wo=True)
    # Part 0x031, designer 0x41 (Arm), revision 0.  Source: DDI 0224C, 3.3.9 and 3.3.10
    PERIPHID0 = Reg(0xFE0, "part number, bits 7:0", ro=True, reset=0x31)
    PERIPHID1 = Reg(0xFE4, "designer 3:0, part number 11:8", ro=True, reset=0x10)
    PERIPHID2 = Reg(0xFE8, "revision, designer 7:4", ro=True, reset=0x04)
    PERIPHID3 = Reg(0xFEC, "configuration", ro=True, reset=0x00)
    PCELLID0 = Reg(0xFF0, "PrimeCell identification", ro=True, reset=0x0D)
    PCELLID1 = Reg(0xFF4, "PrimeCell identification", ro=True, reset=0xF0)
    PCELLID2 = Reg(0xFF8, "PrimeCell identification", ro=True, reset=0x05)
    PCELLID3 = Reg(0xFFC, "PrimeCell identification", ro=True, reset=0xB1)

    state_fields: ClassVar = (
        StateField("offset", -HOST_SECONDS, HOST_SECONDS),
        StateField("alarm_at", -HOST_SECONDS, HOST_SECONDS),
        StateField("_raised", 0, 1),
    )

    def __init__(self, irq: Irq, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.irq = irq
        self.clock = clock
        self.on_rearm: Callable[[], None] | None = None
        self.fast_path: FastPath | None = None
        self.offset = 0  # seconds: the guest's clock minus the host's
        self.alarm_at = 0  # the host's time of the next match
        self._raised = False
        self._set_alarm()
        self._rearmed = False  # on_rearm must be called

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        """Handle a guest's write, which may move the alarm."""
        super().mmio_write(offset, length, value)
        if self._rearmed:
            self._rearmed = False
            if self.on_rearm is not None:
                self.on_rearm()

    def use_fast_path(self, fast_path: FastPath | None) -> None:
        """Use that fast path from now on, or none."""
        with self.lock:
            self.fast_path = fast_path
            self._publish()

    def next_alarm(self) -> float | None:
        """Return when `tick` must run next, by ``clock``; None if no interrupt is possible."""
        with self.lock:
            return self.alarm_at if self.IMSC and not self.RIS else None

    def tick(self) -> None:
        """Raise the alarm if it is due."""
        with self.lock:
            self._match()

    @property
    def is_raised(self) -> bool:
        """Whether the interrupt line is raised."""
        return self._raised

    def restored(self) -> None:
        """Rearm the alarm; one missed since the save is due at once."""
        self._rearmed = True
        self._publish()

    @DR.read
    def _(self) -> int:
        return (math.floor(self.clock()) + self.offset) & SECONDS

    @MR.write
    def _(self, value: int) -> None:
        self._match()
        self.MR = value
        self._set_alarm()

    @LR.write
    def _(self, value: int) -> None:
        self._match()
        self.LR = value
        self.offset = value - math.floor(self.clock())
        self._set_alarm()

    @IMSC.write
    def _(self, value: int) -> None:
        self.IMSC = value & ALARM
        self._rearmed = True
        self._match()

    @RIS.read
    def _(self) -> int:
        self._match()
        return self.RIS

    @MIS.read
    def _(self) -> int:
        self._match()
        return self.RIS & self.IMSC

    @ICR.write
    def _(self, value: int) -> None:
        self._match()
        if value & ALARM:
            self.RIS = 0
            self._rearmed = True
            self._update()

    def _set_alarm(self) -> None:
        """Compute the time of the next match, which may be the current second."""
        second = math.floor(self.clock())
        self.alarm_at = second + ((self.MR - second - self.offset) & SECONDS)
        self._rearmed = True
        self._match()

    def _match(self) -> None:
        """Set RIS if the clock has matched since the last call."""
        if self.clock() >= self.alarm_at:
            self.RIS = ALARM
            self.alarm_at += SECONDS + 1  # after the counter has wrapped
        self._update()

    def _update(self) -> None:
        """Update the fast path, and then the interrupt line."""
        self._publish()
        raised = bool(self.RIS & self.IMSC)
        if raised != self._raised:
            self._raised = raised
            self.irq(raised)

    def _publish(self) -> None:
        if self.fast_path is not None:
            raised = self.RIS & self.IMSC
            registers = (0, self.MR, self.LR, self.CR, self.IMSC, self.RIS, raised, 0)
            self.fast_path.publish(self.offset, self.alarm_at, registers)
