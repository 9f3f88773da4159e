from __future__ import annotations

from pyvmm.arm64.core import affinity
from tests.arm64.psci import mpidr


def test_mpidr_puts_16_vcpus_in_a_cluster() -> None:
    assert [int(mpidr(number)) for number in (0, 15, 16, 255, 4096)] == [
        0x8000_0000,
        0x8000_000F,
        0x8000_0100,
        0x8000_0F0F,
        0x8001_0000,
    ]


def test_affinity_clears_the_other_fields() -> None:
    assert affinity(0x80_C100_0203) == 0x80_0000_0203
