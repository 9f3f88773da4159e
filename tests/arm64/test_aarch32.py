"""AArch32 names of registers, compared with the kernel's table of banked registers."""

from __future__ import annotations

import pytest

from pyvmm.arm64 import sysregs
from pyvmm.arm64.aarch32 import name32
from pyvmm.arm64.core import GENERAL_REGISTERS

# Source: Linux, arch/arm64/kvm/hyp/aarch32.c and include/asm/ptrace.h: compat_sp_hyp is regs[15],
# compat_lr_svc regs[18], compat_sp_fiq regs[29] and so on.
KERNELS = {
    "sp_usr": 13, "lr_usr": 14, "sp_hyp": 15, "lr_irq": 16, "sp_irq": 17, "lr_svc": 18,
    "sp_svc": 19, "lr_abt": 20, "sp_abt": 21, "lr_und": 22, "sp_und": 23, "r8_fiq": 24,
    "r9_fiq": 25, "r10_fiq": 26, "r11_fiq": 27, "r12_fiq": 28, "sp_fiq": 29, "lr_fiq": 30,
}  # fmt: skip


@pytest.mark.parametrize(("name", "number"), KERNELS.items())
def test_banked_registers_are_where_the_kernel_has_them(name: str, number: int) -> None:
    assert (name32(f"X{number}") or "").lower() == name


def test_low_registers_keep_their_number() -> None:
    assert [name32(f"X{n}") for n in range(13)] == [f"R{n}" for n in range(13)]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("PSTATE", "CPSR"), ("SPSR_EL1", "SPSR_svc"), ("SPSR_ABT", "SPSR_abt"),
        ("SCTLR_EL1", "SCTLR"), ("TCR_EL1", "TTBCR"), ("ESR_EL1", "DFSR"),
        ("IFSR32_EL2", "IFSR"), ("FAR_EL1", "IFAR:DFAR"), ("TPIDR_EL1", "TPIDRPRW"),
        ("ID_MMFR3_EL1", "ID_MMFR3"), ("PMCR_EL0", "PMCR"), ("ICC_PMR_EL1", "ICC_PMR"),
        ("DBGBVR3_EL1", "DBGBVR3"), ("ELR_EL1", None), ("SP_EL1", None), ("PC", None),
        ("ID_AA64PFR0_EL1", None), ("SCTLR_EL2", None), ("ZCR_EL1", None), ("TIMER_CNT", None),
    ],
)  # fmt: skip
def test_registers_have_their_name_of_aarch32_or_none(name: str, other: str | None) -> None:
    assert name32(name) == other


def test_no_two_registers_have_the_same_name() -> None:
    names = (*GENERAL_REGISTERS, "PSTATE", *sysregs.ENCODINGS)
    found = [other for name in names if (other := name32(name))]

    assert len(found) == len(set(found)) > 100
