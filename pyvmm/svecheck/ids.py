"""Register ids by name, for cases."""

from __future__ import annotations

from pyvmm.arm64 import sysregs
from pyvmm.kvm import regs

SLICES = 32  # a register id has room for so many slice numbers

ZCR_EL1 = regs.lookup("ZCR_EL1", sysregs.ENCODINGS)
ID_AA64PFR0_EL1 = regs.lookup("ID_AA64PFR0_EL1", sysregs.ENCODINGS)
ID_AA64ZFR0_EL1 = regs.lookup("ID_AA64ZFR0_EL1", sysregs.ENCODINGS)
VBAR_EL1 = regs.lookup("VBAR_EL1", sysregs.ENCODINGS)

Z = {name: reg_id for name, reg_id in regs.fixed().items() if reg_id in regs.Z_REGISTERS}
P_FFR = {name: reg_id for name, reg_id in regs.fixed().items() if reg_id in regs.P_REGISTERS}
Z_P_FFR = {**Z, **P_FFR}
SURPLUS = {
    f"{name}[{slice_}]": reg_id + slice_
    for name, reg_id in Z_P_FFR.items()
    for slice_ in range(1, SLICES)
}
V = {name: reg_id for name, reg_id in regs.fixed().items() if reg_id in regs.V_REGISTERS}
VLS = {"SVE_VLS": regs.SVE_VLS}
CORE = {name: regs.lookup(name) for name in ("X0", "X30", "SP_EL0", "PC", "PSTATE", "FPSR", "FPCR")}
SYSREGS = {
    "MPIDR_EL1": regs.MPIDR_EL1,
    "ID_AA64PFR0_EL1": ID_AA64PFR0_EL1,
    "ID_AA64ZFR0_EL1": ID_AA64ZFR0_EL1,
}
