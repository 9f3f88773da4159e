"""Syndromes of kernel panics and of guest exits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64 import fault
from pyvmm.arm64.esr import DabtIss, Esr, ExceptionClass, IabtIss, SysIss, explain_esr
from pyvmm.arm64.fault import FaultStatus


@pytest.mark.parametrize(
    ("esr", "words"),
    [
        # A kernel's NULL dereference and jump to data
        (0x9600_0004, "data abort, from the same exception level: read, level 0 translation fault"),
        (
            0x9600_0045,
            "data abort, from the same exception level: write, level 1 translation fault",
        ),
        (
            0x8600_000F,
            "instruction abort, from the same exception level: level 3 permission fault",
        ),
        (
            0x9200_0021,
            "data abort, from a lower exception level: read, alignment fault",
        ),
        # A guest's exits: str w0 and ldr x1 outside RAM
        (
            0x9380_0047,
            "data abort, from a lower exception level: write of 4 bytes from W0, "
            "level 3 translation fault",
        ),
        (
            0x93C1_8007,
            "data abort, from a lower exception level: read of 8 bytes to X1, "
            "level 3 translation fault",
        ),
        (
            0x931F_0047,
            "data abort, from a lower exception level: write of 1 byte from WZR, "
            "level 3 translation fault",
        ),
        (
            0x9200_01C7,
            "data abort, from a lower exception level: cache maintenance, in a stage 1 walk, "
            "level 3 translation fault",
        ),
        # Calls
        (0x5600_0000, "SVC #0x0"),
        (0x5A00_0001, "HVC #0x1"),
        (0x5E00_FFFF, "SMC #0xffff"),
        (0xF200_0800, "BRK #0x800"),  # BUG() in Linux
        # Traps: ESR_ELx_SYS64_ISS_SYS_CTR_READ of Linux's asm/esr.h, and others
        (0x6232_C001, "trapped MSR, MRS or system instruction: MRS X0, CTR_EL0"),
        (0x6230_0069, "trapped MSR, MRS or system instruction: MRS X3, ID_AA64PFR0_EL1"),
        (0x6230_0444, "trapped MSR, MRS or system instruction: MSR ZCR_EL1, X2"),
        (0x6212_DCBC, "trapped MSR, MRS or system instruction: MSR S1_3_C7_C14_1, X5"),
        (0x1FE0_0000, "trapped floating point, Advanced SIMD or SVE"),
        (0x6600_0000, "trapped SVE"),
        (0x07E0_0000, "trapped wait: WFI"),
        (0x07E0_0001, "trapped wait: WFE"),
        (0x0000_0000, "unknown reason, as for an undefined instruction"),
        (0x3A00_0000, "illegal execution state"),
        (0xFE00_0000, "unallocated exception class 0x3f"),
    ],
)
def test_explain_esr_describes_a_syndrome(esr: int, words: str) -> None:
    assert explain_esr(esr) == words


def test_syndrome_has_the_fields_of_its_class() -> None:
    esr = Esr(0x93C1_8007)

    iss = esr.iss

    assert esr.EC is ExceptionClass.DABT_LOW
    assert isinstance(iss, DabtIss)
    assert (iss.ISV, iss.SRT, iss.SF, iss.WnR) == (1, 1, 1, 0)
    assert iss.DFSC is FaultStatus.FAULT_L3
    assert isinstance(Esr(0x8600_000F).iss, IabtIss)
    assert Esr(0).iss is None


@pytest.mark.parametrize(
    ("bits", "field"),
    [
        # Linux, arch/arm64/include/asm/esr.h: ESR_ELx_* of data aborts
        (1 << 24, "ISV"),
        (3 << 22, "SAS"),
        (1 << 21, "SSE"),
        (0x1F << 16, "SRT"),
        (1 << 15, "SF"),
        (1 << 14, "AR"),
        (1 << 13, "VNCR"),
        (3 << 11, "SET"),
        (1 << 10, "FnV"),
        (1 << 9, "EA"),
        (1 << 8, "CM"),
        (1 << 7, "S1PTW"),
        (1 << 6, "WnR"),
        (0x3F, "DFSC"),
    ],
)
def test_data_abort_field_is_the_kernels(bits: int, field: str) -> None:
    assert {item.name: item.mask for item in DabtIss.fields()}[field] == bits


def test_trapped_access_has_the_encoding_of_sysregs() -> None:
    iss = SysIss(0x32_C001)

    assert iss.encoding == 3 << 14 | 3 << 11 | 0 << 7 | 0 << 3 | 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        # fault_info[] of Linux, arch/arm64/mm/fault.c
        (0x00, "level 0 address size fault"),
        (0x07, "level 3 translation fault"),
        (0x09, "level 1 access flag fault"),
        (0x0D, "level 1 permission fault"),
        (0x10, "external abort"),
        (0x13, "level -1 external abort in the translation table walk"),
        (0x21, "alignment fault"),
        (0x29, "level -1 address size fault"),
        (0x2B, "level -1 translation fault"),
        (0x2C, "level -2 address size fault"),
        (0x30, "TLB conflict abort"),
        (0x31, "unsupported atomic hardware update"),
        (0x35, "implementation defined fault (unsupported exclusive)"),
        (0x3F, "unknown fault 0x3f"),
    ],
)
def test_explain_describes_a_fault(status: int, words: str) -> None:
    assert fault.explain(DabtIss(status).DFSC) == words


def test_explain_describes_every_fault() -> None:
    assert all(fault.explain(status) for status in FaultStatus)


@given(st.integers(0, 2**64 - 1))
def test_explain_esr_describes_any_syndrome(value: int) -> None:
    assert explain_esr(value)
