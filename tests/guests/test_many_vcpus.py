"""Guests with many vCPUs: each starts, has its affinity, and gets its own interrupts."""

from __future__ import annotations

import subprocess

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(1800)]


def affinity(index: int) -> int:
    """Return MPIDR_EL1 of a vCPU.

    A list of SGIs names 16 of them. Source: Linux, reset_mpidr() in arch/arm64/kvm/sys_regs.c
    """
    return 1 << 31 | index >> 12 << 16 | (index >> 4 & 0xFF) << 8 | index & 0xF


@pytest.mark.parametrize("host", ["6.1", "6.12", "7.2"], indirect=True)
@pytest.mark.parametrize("vcpus", [1, 16, 17, 64, 128, 256, 512])
def test_every_vcpu_has_its_affinity_and_gets_its_interrupts(
    host: list[str], vcpus: int, pyvmm_cmd: list[str]
) -> None:
    command = [*pyvmm_cmd, "run", *host, "-c", str(vcpus), "-m", "256", "smp"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)

    lines = [f"vCPU {index}: MPIDR {affinity(index):#x} up" for index in range(vcpus)]
    if vcpus > 1:
        lines.append(f"vCPU {vcpus - 1}: off and up again")
    assert done.stdout.splitlines() == [*lines, f"{vcpus} vCPUs"], done.stderr
    assert (done.stderr, done.returncode) == ("", 0)
