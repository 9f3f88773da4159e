from __future__ import annotations

import pytest

from pyvmm.arm64.control import Cpacr, Mair, Sctlr, Tcr, Zcr
from pyvmm.arm64.unitregs import CntCtl, Fpcr, IccCtlr, Pmcr


def words(register: Sctlr | Tcr | Mair | Cpacr) -> dict[str, str]:
    """Return the fields that are not zero."""
    return {field.name: field.word(register) for field in register.fields() if field.get(register)}


def test_sctlr_res1_bits_are_those_of_armv8_0() -> None:
    # SCTLR_EL1_RES1 of Linux v4.12
    assert words(Sctlr(0x30D0_0800)).keys() == {"LSMAOE", "nTLSMD", "SPAN", "EIS", "TSCXT", "EOS"}


@pytest.mark.parametrize(
    ("bit", "field"), [(0, "M"), (2, "C"), (12, "I"), (25, "EE"), (26, "UCI"), (30, "EnIB")]
)
def test_sctlr_bit_is_the_kernels(bit: int, field: str) -> None:
    assert words(Sctlr(1 << bit)) == {field: "1"}


def test_tcr_decodes_the_value_of_linux_with_39_address_bits() -> None:
    tcr = Tcr(0x32_B559_3519)

    assert (tcr.T0SZ, tcr.T1SZ) == (64 - 39, 64 - 39)
    assert words(tcr) == {
        "TBI0": "1", "AS": "1", "IPS": "BITS_40", "A1": "1",
        "TG1": "KIB_4", "SH1": "INNER", "ORGN1": "WBWA", "IRGN1": "WBWA", "T1SZ": "0x19",
        "SH0": "INNER", "ORGN0": "WBWA", "IRGN0": "WBWA", "T0SZ": "0x19",
    }  # fmt: skip


def test_mair_decodes_the_value_of_linux_v5_4() -> None:
    mair = Mair(0x0000_BBFF_440C_0400)

    assert [field.word(mair) for field in mair.fields()][::-1] == [
        "DEVICE_nGnRnE",
        "DEVICE_nGnRE",
        "DEVICE_GRE",
        "NORMAL_NC",
        "NORMAL",
        "NORMAL_WT",
        "DEVICE_nGnRnE",
        "DEVICE_nGnRnE",
    ]


def test_cpacr_decodes_untrapped_floating_point_and_sve() -> None:
    assert words(Cpacr(0x33_0000)) == {"FPEN": "NO_TRAP", "ZEN": "NO_TRAP"}


def test_zcr_len_has_four_bits() -> None:
    assert Zcr(0x1FF).LEN == 15


def test_timer_control_shows_a_fired_timer() -> None:
    assert str(CntCtl(5)) == "0x5 (ISTATUS=1 IMASK=0 ENABLE=1)"


def test_pmcr_has_event_counters_and_implementer() -> None:
    assert Pmcr(0x4101_30A8).N == 6
    assert ord("A") == Pmcr(0x4101_30A8).IMP


def test_fpcr_rounding_has_names_and_icc_ctlr_priorities_have_numbers() -> None:
    assert Fpcr.RMode.word(Fpcr(0xC0_0000)) == "RZ"
    assert IccCtlr.PRIbits.get(0x400) == 4
