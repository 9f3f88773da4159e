"""The registers that cases access, by name."""

from __future__ import annotations

from pyvmm.arm64 import sysregs
from pyvmm.kvm import regs

SLICES = 32  # as many as a register id can name

ZCR_EL1 = regs.lookup("ZCR_EL1", sysregs.ENCODINGS)
MPIDR_EL1 = regs.lookup("MPIDR_EL1", sysregs.ENCODINGS)
ID_AA64PFR0_EL1 = regs.lookup("ID_AA64PFR0_EL1", sysregs.ENCODINGS)
ID_AA64ZFR0_EL1 = regs.lookup("ID_AA64ZFR0_EL1", sysregs.ENCODINGS)
VBAR_EL1 = regs.lookup("VBAR_EL1", sysregs.ENCODINGS)

Z = {f"Z{n}": regs.Z(n) for n in range(32)}
P_FFR = {**{f"P{n}": regs.P(n) for n in range(16)}, "FFR": regs.FFR()}
Z_P_FFR = {**Z, **P_FFR}
SURPLUS = {
    f"{name}[{slice_}]": reg_id + slice_
    for name, reg_id in Z_P_FFR.items()
    for slice_ in range(1, SLICES)
}
V = {f"V{n}": regs.V(n) for n in range(32)}
VLS = {"SVE_VLS": regs.SVE_VLS}
CORE = {name: regs.lookup(name) for name in ("X0", "X30", "SP_EL0", "PC", "PSTATE", "FPSR", "FPCR")}
SYSREGS = {
    "MPIDR_EL1": MPIDR_EL1,
    "ID_AA64PFR0_EL1": ID_AA64PFR0_EL1,
    "ID_AA64ZFR0_EL1": ID_AA64ZFR0_EL1,
}
