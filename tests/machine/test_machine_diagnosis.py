"""What a machine says of a guest that makes no progress."""

from __future__ import annotations

import time

import pytest

from pyvmm.arm64.control import Tcr
from pyvmm.kvm import regs
from pyvmm.layout import MIB
from pyvmm.machine.diagnosis.rules import Look
from pyvmm.machine.machine import Machine
from tests.machine.conftest import SYSTEM_RESET, Boot, let_reset

pytestmark = pytest.mark.kvm

UPPER = 0xFFFF_FF80_0000_0000  # addresses of 39 bits, by TTBR1_EL1


def test_machine_reports_once_why_a_guest_makes_no_progress(boot: Boot) -> None:
    said: list[str] = []
    machine = boot("undefined", log=said.append)

    start_until_said(machine, said)
    machine.say_why()

    assert said == ["vCPU 0 faults for ever at 0x200: it has no exception vectors (VBAR_EL1 is 0)"]


def test_guest_that_has_just_started_gets_time_to_show_the_cause(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    machine = boot("undefined", log=said.append)
    start_until_said(machine, said)
    (cause,) = said
    machine.has_said_why, looks, look = False, [0], machine._look

    def look_late() -> Look:
        looks[0] += 1
        found = look()
        if looks[0] > 2:
            return found
        return found.replace(vcpus=tuple(v.replace(pc=0x8008_0000, esr=0) for v in found.vcpus))

    monkeypatch.setattr(machine, "_look", look_late)
    machine.say_why()

    assert said == [cause, cause]


def test_machine_reports_why_a_guest_hangs_at_virtual_addresses(boot: Boot) -> None:
    said: list[str] = []
    machine = boot("hang in a vector", log=said.append)
    vcpu, table = machine.vcpus[0], machine.memory.base + MIB
    block = 0x401 | machine.memory.base  # of 1 GiB, with the access flag
    machine.memory.write(table + 8 * (machine.memory.base >> 30), block.to_bytes(8, "little"))
    vcpu.sysreg["TCR_EL1"] = Tcr.of(T0SZ=25, T1SZ=25, TG1=2, IPS=1)
    vcpu.sysreg["TTBR1_EL1"] = table
    vcpu.sysreg["MAIR_EL1"] = 0xFF
    vcpu.sysreg["SCTLR_EL1"] = vcpu.sysreg["SCTLR_EL1"].replace(M=1)
    vcpu.set_one_reg(regs.PC, UPPER | machine.image.entry)

    start_until_said(machine, said)

    assert said == [
        "vCPU 0 stays at 0xffffff8080080200, in its exception vectors, after an exception at "
        "0xffffff808008001c: BRK #0x7"
    ]


def start_until_said(machine: Machine, said: list[str]) -> None:
    """Start a machine, and look at it until its vCPU has run."""
    machine.start()
    deadline = time.monotonic() + 120
    while not said and time.monotonic() < deadline:
        machine.say_why(sure=True)


def test_machine_reports_nothing_when_the_guest_is_paused_or_has_ended(boot: Boot) -> None:
    said: list[str] = []
    machine = boot("undefined", log=said.append)
    machine.start()

    with machine.paused():
        machine.say_why()
    machine.stop()
    machine.say_why()

    assert said == []
    assert not machine.is_paused


def test_guest_continues_after_a_diagnosis(boot: Boot) -> None:
    machine = boot("count", vcpus=2)
    machine.start()

    def counted() -> int:
        with machine.paused():
            return machine.vcpus[0].get_one_reg(regs.X(1))

    machine.say_why(sure=True)
    before = counted()
    machine.say_why(sure=True)

    deadline = time.monotonic() + 120
    while counted() <= before:
        assert time.monotonic() < deadline, "the guest stands still"
        time.sleep(0.01)  # a guest that is paused again at once never runs


def test_machine_reports_a_silent_guest_that_resets(boot: Boot) -> None:
    said: list[str] = []
    machine = boot("call", log=said.append)
    machine.vcpus[0].set_one_reg(regs.X(0), SYSTEM_RESET)
    machine.resets = 40
    machine.start()
    let_reset(machine)

    machine.say_why()

    assert said == ["the guest has printed nothing since reset 40, and resets"]
