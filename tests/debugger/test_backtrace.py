"""Call chains by frame records, also hostile ones."""

from __future__ import annotations

import struct

import pytest

from pyvmm.arm64.control import Tcr
from pyvmm.arm64.sysregs import ENCODINGS
from pyvmm.debugger.backtrace import DEEPEST, call_chain, strip
from pyvmm.kvm import regs
from tests.debugger.client import BASE, MadeUp

TCR = Tcr.of(T0SZ=16, T1SZ=16, TBI0=1)


def frames(machine: MadeUp, *records: tuple[int, int, int]) -> None:
    """Write records (address, next, return address), and let X29 lead to the first."""
    for place, following, back in records:
        struct.pack_into("<2Q", machine.memory, place - BASE, following, back)
    machine.cpus[0].set_one_reg(regs.X(29), records[0][0])


def test_chain_has_pc_and_the_return_addresses() -> None:
    machine = MadeUp()
    frames(machine, (BASE + 0x100, BASE + 0x200, 0x1111), (BASE + 0x200, 0, 0x2222))

    assert call_chain(machine.cpus[0], machine.read_physical) == [0x8008_0000, 0x1111, 0x2222]


@pytest.mark.parametrize("start", [0, 0x108, 0x7000_0000_0000, (1 << 64) - 16])
def test_chain_ends_where_there_is_no_record(start: int) -> None:
    machine = MadeUp()
    machine.cpus[0].set_one_reg(regs.X(29), start)

    assert call_chain(machine.cpus[0], machine.read_physical) == [0x8008_0000]


def test_chain_of_records_in_a_circle_ends() -> None:
    machine = MadeUp()
    frames(machine, (BASE + 0x100, BASE + 0x100, 0x1111))

    assert len(call_chain(machine.cpus[0], machine.read_physical)) == DEEPEST


@pytest.mark.parametrize(
    ("signed", "plain"),
    [
        (0xABCD_8000_0801_0004, 0xFFFF_8000_0801_0004),  # bit 55 is 1
        (0x003F_0000_0801_0004, 0x0000_0000_0801_0004),
        (0x127F_0000_0801_0004, 0x1200_0000_0801_0004),  # the tag stays
        (0xFFFF_8000_0801_0004, 0xFFFF_8000_0801_0004),
    ],
)
def test_signatures_are_taken_off(signed: int, plain: int) -> None:
    assert strip(signed, TCR) == plain


def test_chain_takes_signatures_off_where_the_vcpu_signs() -> None:
    machine = MadeUp()
    cpu = machine.cpus[0]
    for name, value in (("ID_AA64ISAR1_EL1", 1 << 4), ("TCR_EL1", TCR)):
        cpu.set_one_reg(regs.lookup(name, ENCODINGS), value)
    frames(machine, (BASE + 0x100, 0, 0x0012_0000_0000_1111))

    assert call_chain(cpu, machine.read_physical)[1] == 0x0012_0000_0000_1111  # the MMU is off
