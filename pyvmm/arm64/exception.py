"""The entry to an exception handler of a guest, as the CPU does it, for exceptions to EL1.

Source: Arm ARM DDI 0487, pseudocode AArch64.TakeException(); D1.3 "Exceptions".
"""

from __future__ import annotations

from pyvmm.arm64.control import Sctlr
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.base.records import Record

SYNC_SP0, SYNC_SPX, SYNC_LOWER_64, SYNC_LOWER_32 = 0x000, 0x200, 0x400, 0x600
VECTORS = 0x800  # bytes of all vectors
VECTOR = 0x80  # bytes of one
EC_SHIFT = 26


class Entry(Record):
    """The registers after a synchronous exception to EL1: PC, PSTATE, and SPSR_EL1."""

    pc: int
    pstate: int
    spsr: int


def enter_el1(pstate: Pstate, vbar: int, control: Sctlr, *, has_pan: bool, has_mte: bool) -> Entry:
    """Return the state after a synchronous exception from EL1 or EL0."""
    mode = pstate.M
    if pstate.nRW:
        offset = SYNC_LOWER_32
    else:
        offset = {Mode.EL0t: SYNC_LOWER_64, Mode.EL1t: SYNC_SP0}.get(Mode(mode), SYNC_SPX)
    new = Pstate.of(
        N=pstate.N, Z=pstate.Z, C=pstate.C, V=pstate.V, DIT=pstate.DIT,
        D=1, A=1, I=1, F=1, M=Mode.EL1h,
        PAN=int(bool(pstate.PAN or (has_pan and not control.SPAN))),
        SSBS=control.DSSBS, TCO=int(has_mte),
    )  # fmt: skip
    return Entry(pc=vbar + offset, pstate=new, spsr=pstate)


def is_vector(pc: int, vbar: int) -> bool:
    """Return whether an address is the first instruction of an exception vector."""
    return 0 <= pc - vbar < VECTORS and (pc - vbar) % VECTOR == 0
