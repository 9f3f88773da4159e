"""The processor state in SPSR_ELx's layouts, for AArch64 and for AArch32.

Source: Arm ARM DDI 0487, C5.2 "SPSR_EL1, Saved Program Status Register (EL1)".
"""

from __future__ import annotations

from enum import IntEnum

from pyvmm.arm64.bits import Bits, bit, bits


class Mode(IntEnum):
    """PSTATE.M: the exception level and its stack pointer (t: SP_EL0, h: SP_ELx)."""

    EL0t = 0b0000
    EL1t = 0b0100
    EL1h = 0b0101
    EL2t = 0b1000
    EL2h = 0b1001
    EL3t = 0b1100
    EL3h = 0b1101


class Mode32(IntEnum):
    """PSTATE.M of AArch32, which includes AArch64's nRW bit."""

    User = 0b10000
    FIQ = 0b10001
    IRQ = 0b10010
    Supervisor = 0b10011
    Monitor = 0b10110
    Abort = 0b10111
    Hyp = 0b11010
    Undefined = 0b11011
    System = 0b11111


class BType(IntEnum):
    """PSTATE.BTYPE: the kind of the last branch, with the kernel's letters."""

    NONE = 0b00
    JC = 0b01  # BR from an unguarded page, or by X16 or X17
    C = 0b10  # BLR
    J = 0b11  # BR from a guarded page


class Pstate(Bits, registers="PSTATE SPSR_EL1 SPSR_EL2 SPSR_ABT SPSR_UND SPSR_IRQ SPSR_FIQ"):
    """The processor state in AArch64."""

    N = bit(31, "negative")
    Z = bit(30, "zero")
    C = bit(29, "carry")
    V = bit(28, "overflow")
    TCO = bit(25, "memory tag checks are off")
    DIT = bit(24, "data independent timing")
    UAO = bit(23, "unprivileged accesses are privileged")
    PAN = bit(22, "EL0's memory is not accessible")
    SS = bit(21, "software step")
    IL = bit(20, "illegal execution state")
    ALLINT = bit(13, "all interrupts masked")
    SSBS = bit(12, "speculative store bypass is allowed")
    BTYPE = bits(11, 10, "branch type", BType)
    D = bit(9, "debug exceptions masked")
    A = bit(8, "SError masked")
    I = bit(7, "IRQ masked")  # noqa: E741 - Arm's name
    F = bit(6, "FIQ masked")
    nRW = bit(4, "AArch32")
    M = bits(3, 0, "exception level and stack pointer", Mode)


class Pstate32(Bits):
    """The processor state in AArch32."""

    N = bit(31, "negative")
    Z = bit(30, "zero")
    C = bit(29, "carry")
    V = bit(28, "overflow")
    Q = bit(27, "saturated")
    IT1_0 = bits(26, 25, "If-Then, bits 1 and 0")
    DIT = bit(24, "data independent timing")
    SSBS = bit(23, "speculative store bypass is allowed")
    PAN = bit(22, "User mode's memory is not accessible")
    SS = bit(21, "software step")
    IL = bit(20, "illegal execution state")
    GE = bits(19, 16, "greater than or equal, by byte")
    IT7_2 = bits(15, 10, "If-Then, bits 7 to 2")
    E = bit(9, "big-endian")
    A = bit(8, "SError masked")
    I = bit(7, "IRQ masked")  # noqa: E741 - Arm's name
    F = bit(6, "FIQ masked")
    T = bit(5, "T32 instructions")
    M = bits(4, 0, "mode", Mode32)


# A vCPU after KVM's reset: at EL1 with that level's stack pointer and all exceptions masked, as the
# arm64 boot protocol requires.  Source: Documentation/arch/arm64/booting.rst.
PSTATE_AT_RESET = Pstate.of(D=1, A=1, I=1, F=1, M=Mode.EL1h)


def pstate(value: int) -> Pstate | Pstate32:
    """Decode a PSTATE or SPSR_ELx in the layout of its execution state."""
    state = Pstate(value)
    return Pstate32(value) if state.nRW else state
