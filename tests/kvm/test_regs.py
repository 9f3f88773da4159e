from __future__ import annotations

import pytest

from pyvmm.arm64 import sysregs
from pyvmm.kvm import regs


@pytest.mark.parametrize(
    ("made", "reg_id"),
    [
        # From Documentation/virt/kvm/api.rst and KVM_GET_REG_LIST.
        (regs.X(0), 0x6030_0000_0010_0000),
        (regs.X(30), 0x6030_0000_0010_003C),
        (regs.SP_EL0, 0x6030_0000_0010_003E),
        (regs.PC, 0x6030_0000_0010_0040),
        (regs.PSTATE, 0x6030_0000_0010_0042),
        (regs.SP_EL1, 0x6030_0000_0010_0044),
        (regs.ELR_EL1, 0x6030_0000_0010_0046),
        (regs.SPSR_FIQ, 0x6030_0000_0010_0050),
        (regs.V(0), 0x6040_0000_0010_0054),
        (regs.V(31), 0x6040_0000_0010_00D0),
        (regs.FPSR, 0x6020_0000_0010_00D4),
        (regs.FPCR, 0x6020_0000_0010_00D5),
        (regs.Z(0), 0x6080_0000_0015_0000),
        (regs.Z(31), 0x6080_0000_0015_03E0),
        (regs.P(0), 0x6050_0000_0015_0400),
        (regs.P(15), 0x6050_0000_0015_05E0),
        (regs.FFR(), 0x6050_0000_0015_0600),
        (regs.SVE_VLS, 0x6060_0000_0015_FFFF),
        (regs.sysreg(3, 0, 1, 2, 0), 0x6030_0000_0013_C090),  # ZCR_EL1
        (regs.sysreg(3, 0, 0, 0, 5), 0x6030_0000_0013_C005),  # MPIDR_EL1
        (regs.TIMER_CNT, 0x6030_0000_0013_DF1A),
        (regs.TIMER_CVAL, 0x6030_0000_0013_DF02),
        (regs.TIMER_CTL, 0x6030_0000_0013_DF19),
        (regs.PSCI_VERSION, 0x6030_0000_0014_0000),
        (regs.ccsidr(2), 0x6020_0000_0011_0002),
    ],
)
def test_register_id_is_the_kernels(made: int, reg_id: int) -> None:
    assert made == reg_id


@pytest.mark.parametrize(
    ("reg_id", "size"),
    [(regs.FPSR, 4), (regs.PC, 8), (regs.V(0), 16), (regs.P(0), 32), (regs.SVE_VLS, 64)],
)
def test_size_comes_from_the_id(reg_id: int, size: int) -> None:
    assert regs.size(reg_id) == size


def test_size_of_the_largest_and_the_smallest() -> None:
    assert (regs.size(regs.Z(0)), regs.size(regs.ARM64 | regs.U8)) == (256, 1)


def test_group_is_the_registers_group() -> None:
    groups = [regs.group(reg) for reg in (regs.PC, regs.Z(0), regs.TIMER_CNT, regs.STD_BMAP)]

    assert groups == [regs.CORE, regs.SVE, regs.SYSREG, regs.FW_FEAT_BMAP]


@pytest.mark.parametrize("reg_id", [regs.X(7), regs.V(3), regs.Z(9), regs.FFR(), regs.PSTATE])
def test_name_and_lookup_are_inverse(reg_id: int) -> None:
    assert regs.lookup(regs.name(reg_id)) == reg_id


def test_name_of_a_system_register_is_generic_without_a_table() -> None:
    zcr_el1 = regs.sysreg(3, 0, 1, 2, 0)

    assert regs.name(zcr_el1) == "S3_0_C1_C2_0"
    assert regs.lookup("S3_0_C1_C2_0") == zcr_el1


def test_name_of_a_system_register_is_arms_with_a_table() -> None:
    zcr_el1 = regs.sysreg(3, 0, 1, 2, 0)

    assert regs.name(zcr_el1, sysregs.NAMES) == "ZCR_EL1"
    assert regs.lookup("ZCR_EL1", sysregs.ENCODINGS) == zcr_el1


def test_timer_registers_have_names_by_function() -> None:
    assert regs.name(regs.TIMER_CNT, sysregs.NAMES) == "TIMER_CNT"
    assert regs.name(regs.TIMER_CVAL, sysregs.NAMES) == "TIMER_CVAL"


def test_name_of_an_unknown_register_is_its_number() -> None:
    odd = regs.Z(0, 3)

    assert regs.name(odd) == f"{odd:#x}"
    assert regs.lookup(regs.name(odd)) == odd


@pytest.mark.parametrize(
    "text",
    ["", "X31", "S3_0_C1", "SCTLR_EL9", "S3_0_C1_C2_x", "S3_0_C16_C2_0", "S4_0_C1_C2_0", "0xno",
     "0x" + "1" * 17],
)  # fmt: skip
def test_lookup_raises_key_error_for_an_unknown_name(text: str) -> None:
    with pytest.raises(KeyError):
        regs.lookup(text, sysregs.ENCODINGS)


def test_encoding_and_fields_are_inverse() -> None:
    for encoding in sysregs.NAMES:
        assert regs.encoding(*regs.fields(encoding)) == encoding
