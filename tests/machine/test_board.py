"""Parts of a machine's hardware that need no KVM."""

from __future__ import annotations

from pyvmm.base.loop import Loop
from pyvmm.devices.pl031 import Pl031
from pyvmm.machine.board import RtcAlarm


def test_rtc_alarm_raises_the_interrupt_from_the_loop() -> None:
    raised: list[bool] = []
    with Loop() as loop:

        def irq(level: bool) -> None:
            raised.append(level)
            loop.stop()

        rtc = Pl031(irq)
        alarm = RtcAlarm(rtc, loop)
        rtc.mmio_write(Pl031.MR.offset, 4, rtc.mmio_read(Pl031.DR.offset, 4) + 1)
        rtc.mmio_write(Pl031.IMSC.offset, 4, 1)
        loop.after(5, loop.stop)
        loop.run()
        alarm.stop()

    assert raised == [True]
