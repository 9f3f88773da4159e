"""The parts of a machine's run that need no KVM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.base.loop import Loop
from pyvmm.devices.pl031 import Pl031
from pyvmm.errors import GuestError
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason, SystemEvent
from pyvmm.machine.alarm import Alarm
from pyvmm.machine.outcome import outcome

VCPU: Any = SimpleNamespace(id=3, get_one_reg=lambda reg: 0x8008_0004)


def leave(reason: int, **fields: int) -> Exit:
    """An exit with the fields of its reason."""
    made = Exit(reason)
    made.fields = fields
    return made


@pytest.mark.parametrize("event", [SystemEvent.SHUTDOWN, SystemEvent.RESET])
def test_guest_that_switches_itself_off_ends_well(event: int) -> None:
    assert outcome(VCPU, leave(ExitReason.SYSTEM_EVENT, type=event)) == 0


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (leave(ExitReason.SYSTEM_EVENT, type=SystemEvent.CRASH), "it has crashed"),
        (leave(ExitReason.SYSTEM_EVENT, type=77), "type=0x4d"),
        (leave(ExitReason.FAIL_ENTRY, hardware_entry_failure_reason=5), "FAIL_ENTRY"),
        (leave(ExitReason.INTERNAL_ERROR, suberror=1), "INTERNAL_ERROR"),
        (leave(ExitReason.ARM_NISV, fault_ipa=0x900_0000, esr_iss=0x10), "0x9000000"),
        (leave(99), "exit 99"),
    ],
)
def test_guest_that_cannot_go_on_is_an_error_that_says_where(exit_: Exit, words: str) -> None:
    error = outcome(VCPU, exit_)

    assert isinstance(error, GuestError)
    assert "vCPU 3 at PC 0x80080004" in error.message
    assert words in error.message


def test_alarm_of_the_clock_goes_off_in_the_loop() -> None:
    raised: list[bool] = []
    with Loop() as loop:

        def irq(level: bool) -> None:
            raised.append(level)
            loop.stop()

        rtc = Pl031(irq)
        alarm = Alarm(rtc, loop)
        rtc.mmio_write(Pl031.MR.offset, 4, rtc.mmio_read(Pl031.DR.offset, 4) + 1)
        rtc.mmio_write(Pl031.IMSC.offset, 4, 1)
        loop.after(5, loop.stop)
        loop.run()
        alarm.stop()

    assert raised == [True]
