"""The chain of calls of a vCPU, by its frame records.

A record is two doublewords: the address of the caller's record, and the return address. X29 has the
address of the newest one. Source: Arm IHI 0055 (AAPCS64), 6.2.3 "The Frame Pointer".
"""

from __future__ import annotations

import struct
from typing import Final

from pyvmm.arm64.control import Tcr
from pyvmm.arm64.translation import Read, translate
from pyvmm.debugger import values
from pyvmm.debugger.addresses import Cpu, regime_of
from pyvmm.errors import VmmError
from pyvmm.kvm import regs

DEEPEST: Final = 64  # frames that are shown; a guest's records may lead in a circle
RECORD: Final = struct.Struct("<2Q")
UPPER: Final = 1 << 55


def call_chain(cpu: Cpu, read: Read) -> list[int]:
    """Return PC and the return addresses, the newest first, without pointer authentication codes.

    LR is not among them: a leaf function's caller may be missing.
    """
    found = [cpu.get_one_reg(regs.PC)]
    try:
        regime = regime_of(cpu)
    except VmmError:
        return found
    record = cpu.get_one_reg(regs.X(29))
    signed = values.has_pauth(cpu) and bool(regime.sctlr.M)
    while len(found) < DEEPEST and record and record % RECORD.size == 0:
        try:
            place = translate(record, regime, read).address
            record, back = RECORD.unpack(read(place, RECORD.size))
        except VmmError:
            break
        if not back:
            break
        found.append(strip(back, regime.tcr) if signed else back)
    return found


def strip(address: int, tcr: Tcr) -> int:
    """Return a code address without its authentication code."""
    upper = bool(address & UPPER)
    mask = values.signature_mask(tcr, "pauth_cmask_high" if upper else "pauth_cmask")
    return address | mask if upper else address & ~mask
