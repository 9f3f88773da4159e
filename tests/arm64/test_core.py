from __future__ import annotations

from pyvmm.arm64.core import PSTATE_AT_RESET, Mode, Pstate, affinity, mpidr


def test_pstate_at_reset_is_el1h_with_everything_masked() -> None:
    assert PSTATE_AT_RESET == 0x3C5
    assert Pstate(0x3C5).M is Mode.EL1h


def test_mpidr_puts_16_vcpus_in_a_cluster() -> None:
    assert [int(mpidr(number)) for number in (0, 15, 16, 255, 4096)] == [
        0x8000_0000,
        0x8000_000F,
        0x8000_0100,
        0x8000_0F0F,
        0x8001_0000,
    ]


def test_affinity_leaves_out_what_is_no_affinity() -> None:
    assert affinity(0x80_C100_0203) == 0x80_0000_0203
