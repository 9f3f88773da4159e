"""The core of an AArch64 processor: its general registers, PSTATE, and its place among others."""

from __future__ import annotations

from enum import IntEnum

from pyvmm.arm64.bits import Bits, bit, bits

GENERAL_REGISTERS = tuple(f"X{number}" for number in range(31))
VECTOR_REGISTERS = tuple(f"V{number}" for number in range(32))


class Mode(IntEnum):
    """PSTATE.M: the exception level, and which stack pointer it uses (t: SP_EL0, h: its own)."""

    EL0t = 0b0000
    EL1t = 0b0100
    EL1h = 0b0101
    EL2t = 0b1000
    EL2h = 0b1001


class Pstate(Bits):
    """The processor state, in the layout of SPSR_EL1.

    Source: Arm ARM DDI 0487, C5.2 "SPSR_EL1, Saved Program Status Register (EL1)".
    """

    N = bit(31, "negative")
    Z = bit(30, "zero")
    C = bit(29, "carry")
    V = bit(28, "overflow")
    SS = bit(21, "software step")
    IL = bit(20, "illegal execution state")
    D = bit(9, "debug exceptions masked")
    A = bit(8, "SError masked")
    I = bit(7, "IRQ masked")  # noqa: E741 - Arm's name
    F = bit(6, "FIQ masked")
    nRW = bit(4, "AArch32")
    M = bits(3, 0, "exception level and stack pointer", Mode)


# How a CPU starts: at EL1 with its own stack pointer, every exception masked.  KVM resets vCPUs so,
# and the arm64 boot protocol asks for it.  Source: Documentation/arch/arm64/booting.rst.
PSTATE_AT_RESET = Pstate.of(D=1, A=1, I=1, F=1, M=Mode.EL1h)


class Mpidr(Bits):
    """Where a CPU is among others (MPIDR_EL1).  Source: Arm ARM DDI 0487, D23.2."""

    Aff3 = bits(39, 32, "affinity level 3")
    RES1 = bit(31, "always one")
    U = bit(30, "the only CPU")
    MT = bit(24, "level 0 is a thread")
    Aff2 = bits(23, 16, "affinity level 2")
    Aff1 = bits(15, 8, "affinity level 1")
    Aff0 = bits(7, 0, "affinity level 0")


def mpidr(vcpu_id: int) -> Mpidr:
    """The MPIDR_EL1 that KVM gives a vCPU: 16 to a cluster, as a GICv3 SGI can address them.

    Source: reset_mpidr() in arch/arm64/kvm/sys_regs.c.
    """
    return Mpidr.of(
        RES1=1,
        Aff0=vcpu_id & 0xF,
        Aff1=vcpu_id >> 4 & 0xFF,
        Aff2=vcpu_id >> 12 & 0xFF,
    )


def affinity(mpidr_el1: int) -> int:
    """The affinity fields alone: a CPU's ``reg`` in the device tree and its name in PSCI."""
    return mpidr_el1 & (Mpidr.Aff3.mask | Mpidr.Aff2.mask | Mpidr.Aff1.mask | Mpidr.Aff0.mask)
