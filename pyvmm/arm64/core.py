"""An AArch64 CPU: its general registers, and its affinity."""

from __future__ import annotations

from pyvmm.arm64.bits import Bits, bit, bits

GENERAL_REGISTERS = tuple(f"X{number}" for number in range(31))


class Mpidr(Bits, registers="MPIDR_EL1"):
    """The affinity of a CPU.  Source: Arm ARM DDI 0487, D23.2."""

    Aff3 = bits(39, 32, "affinity level 3")
    RES1 = bit(31, "always one")
    U = bit(30, "the only CPU")
    MT = bit(24, "level 0 is a thread")
    Aff2 = bits(23, 16, "affinity level 2")
    Aff1 = bits(15, 8, "affinity level 1")
    Aff0 = bits(7, 0, "affinity level 0")


def affinity(mpidr_el1: int) -> int:
    """Return the affinity fields alone: the device tree and PSCI identify a CPU by them."""
    return mpidr_el1 & (Mpidr.Aff3.mask | Mpidr.Aff2.mask | Mpidr.Aff1.mask | Mpidr.Aff0.mask)
