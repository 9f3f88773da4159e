from __future__ import annotations

import pytest

from pyvmm.arm64.pstate import PSTATE_AT_RESET, BType, Mode, Mode32, Pstate, Pstate32, pstate


def test_pstate_at_reset_is_el1h_with_all_exceptions_masked() -> None:
    assert PSTATE_AT_RESET == 0x3C5
    assert Pstate(0x3C5).M is Mode.EL1h


# Linux, arch/arm64/include/uapi/asm/ptrace.h and include/asm/ptrace.h: PSR_*
@pytest.mark.parametrize(
    ("bit", "field"),
    [
        (0x8000_0000, "N"),
        (0x4000_0000, "Z"),
        (0x2000_0000, "C"),
        (0x1000_0000, "V"),
        (0x0200_0000, "TCO"),
        (0x0100_0000, "DIT"),
        (0x0080_0000, "UAO"),
        (0x0040_0000, "PAN"),
        (0x0020_0000, "SS"),
        (0x0010_0000, "IL"),
        (0x0000_1000, "SSBS"),
        (0x0000_0200, "D"),
        (0x0000_0100, "A"),
        (0x0000_0080, "I"),
        (0x0000_0040, "F"),
        (0x0000_0010, "nRW"),
    ],
)
def test_pstate_bit_is_the_kernels(bit: int, field: str) -> None:
    assert Pstate.of(**{field: 1}) == bit


# The same header: PSR_AA32_*
@pytest.mark.parametrize(
    ("bits", "field"),
    [
        (0x0800_0000, "Q"),
        (0x0600_0000, "IT1_0"),
        (0x0100_0000, "DIT"),
        (0x0080_0000, "SSBS"),
        (0x0040_0000, "PAN"),
        (0x000F_0000, "GE"),
        (0x0000_FC00, "IT7_2"),
        (0x0000_0200, "E"),
        (0x0000_0100, "A"),
        (0x0000_0020, "T"),
        (0x0000_001F, "M"),
    ],
)
def test_aarch32_pstate_bits_are_the_kernels(bits: int, field: str) -> None:
    assert {item.name: item.mask for item in Pstate32.fields()}[field] == bits


def test_branch_types_are_the_kernels() -> None:
    assert [Pstate(kind << 10).BTYPE for kind in range(4)] == list(BType)


@pytest.mark.parametrize(
    ("value", "mode"),
    [(0x0, Mode.EL0t), (0x3C9, Mode.EL2h), (0xD3, Mode32.Supervisor), (0x1DF, Mode32.System)],
)
def test_pstate_decodes_the_mode_of_either_execution_state(value: int, mode: int) -> None:
    assert pstate(value).M is mode
