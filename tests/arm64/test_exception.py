"""The entry to a guest's exception handler; tests/debugger/test_live.py has a CPU's as judge."""

from __future__ import annotations

import pytest

from pyvmm.arm64.control import Sctlr
from pyvmm.arm64.exception import enter_el1, is_vector
from pyvmm.arm64.pstate import Mode, Pstate

VBAR = 0xFFFF_8000_0001_0000


@pytest.mark.parametrize(
    ("pstate", "offset"),
    [
        (Pstate.of(M=Mode.EL1t), 0x000),
        (Pstate.of(M=Mode.EL1h), 0x200),
        (Pstate.of(M=Mode.EL0t), 0x400),
        (Pstate.of(nRW=1), 0x600),
    ],
)
def test_entry_is_at_the_vector_of_the_exception_level(pstate: Pstate, offset: int) -> None:
    entry = enter_el1(pstate, VBAR, Sctlr(0), has_pan=False, has_mte=False)

    assert entry.pc == VBAR + offset
    assert entry.spsr == pstate
    assert is_vector(entry.pc, VBAR)


def test_entry_masks_exceptions_and_keeps_the_flags() -> None:
    before = Pstate.of(M=Mode.EL0t, N=1, C=1, SS=1, IL=1, BTYPE=2, UAO=1, SSBS=1)

    entry = enter_el1(before, VBAR, Sctlr.of(SPAN=1), has_pan=True, has_mte=False)

    assert entry.pstate == Pstate.of(M=Mode.EL1h, N=1, C=1, D=1, A=1, I=1, F=1)


def test_entry_sets_what_the_system_control_register_says() -> None:
    entry = enter_el1(Pstate(0), VBAR, Sctlr.of(SPAN=0, DSSBS=1), has_pan=True, has_mte=True)

    assert (Pstate(entry.pstate).PAN, Pstate(entry.pstate).SSBS) == (1, 1)
    assert Pstate(entry.pstate).TCO == 1


@pytest.mark.parametrize("pc", [VBAR - 4, VBAR + 0x84, VBAR + 0x800, 0])
def test_other_addresses_are_no_vectors(pc: int) -> None:
    assert not is_vector(pc, VBAR)
