"""The registers of KVM_GET_ONE_REG and KVM_SET_ONE_REG: 64-bit ids, and their names.

    63     56 55  52 51          32 31     16 15                    0
    +--------+------+--------------+---------+-----------------------+
    | 0x60   | size |      0       |  group  | number in the group   |
    +--------+------+--------------+---------+-----------------------+

Size is log2 of the bytes.  Source: Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG, arm64.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from pyvmm.base.records import Record
from pyvmm.errors import KvmError

ARM64 = 0x6000_0000_0000_0000
_SIZE_SHIFT = 52
_GROUP_SHIFT = 16
_GROUP_MASK = 0xFFFF << _GROUP_SHIFT

SIZES = U8, U16, U32, U64, U128, U256, U512, U1024, U2048 = tuple(
    n << _SIZE_SHIFT for n in range(9)
)

CORE = 0x10 << _GROUP_SHIFT
DEMUX = 0x11 << _GROUP_SHIFT
SYSREG = 0x13 << _GROUP_SHIFT
FW = 0x14 << _GROUP_SHIFT
SVE = 0x15 << _GROUP_SHIFT
FW_FEAT_BMAP = 0x16 << _GROUP_SHIFT


class RegisterFile(Protocol):
    """The registers of a vCPU or of a saved vCPU, by their ids."""

    def get_one_reg(self, reg_id: int) -> int:
        """Read a register, as a number with the register's own bit order."""

    def set_one_reg(self, reg_id: int, value: int) -> None:
        """Write a register."""

    def get_reg_list(self) -> list[int]:
        """Return the ids of all registers."""


class Held(Record):
    """A register and its value.

    If KVM refused the read, ``value`` is None and ``error`` is the errno's name.
    """

    id: int
    value: int | None
    error: str = ""


def read_all(file: RegisterFile) -> Iterator[Held]:
    """Yield every listed register, in the list's order."""
    for reg_id in file.get_reg_list():
        try:
            held = Held(reg_id, file.get_one_reg(reg_id))
        except KvmError as error:
            held = Held(reg_id, None, error.errno_name)
        yield held


def size(reg_id: int) -> int:
    """Return the register's size in bytes."""
    return 1 << (reg_id >> _SIZE_SHIFT & 0xF)


def group(reg_id: int) -> int:
    """Return the register's group: CORE, SYSREG, SVE, ..."""
    return reg_id & _GROUP_MASK


def core(offset: int, size_bits: int = U64) -> int:
    """Return the member of struct kvm_regs at that byte offset."""
    return ARM64 | size_bits | CORE | offset // 4


def sysreg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the AArch64 system register with that encoding."""
    return ARM64 | U64 | SYSREG | encoding(op0, op1, crn, crm, op2)


def encoding(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return a system register's 16-bit encoding, which is the GIC's CPU_SYSREGS number too."""
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def fields(reg_id: int) -> tuple[int, int, int, int, int]:
    """Return the op0, op1, CRn, CRm and op2 of a system register's id or encoding."""
    return (
        reg_id >> 14 & 3,
        reg_id >> 11 & 7,
        reg_id >> 7 & 15,
        reg_id >> 3 & 15,
        reg_id & 7,
    )


def fw(number: int) -> int:
    """Return a firmware pseudo-register of KVM: its PSCI version, its workarounds."""
    return ARM64 | U64 | FW | number


def bmap(number: int) -> int:
    """Return a bitmap of hypercall services that the guest may use."""
    return ARM64 | U64 | FW_FEAT_BMAP | number


def ccsidr(selector: int) -> int:
    """Return CCSIDR_EL1 for that value of CSSELR_EL1."""
    return ARM64 | U32 | DEMUX | selector


# struct kvm_regs (asm/kvm.h): user_pt_regs, then EL1's registers, then the FP state.
def X(number: int) -> int:
    """Return general-purpose register X0 to X30."""
    return core(number * 8)


SP_EL0 = core(248)
PC = core(256)
PSTATE = core(264)
SP_EL1 = core(272)
ELR_EL1 = core(280)
SPSR_EL1, SPSR_ABT, SPSR_UND, SPSR_IRQ, SPSR_FIQ = (core(288 + 8 * n) for n in range(5))


def V(number: int) -> int:
    """Return FP/SIMD register V0 to V31; a vCPU with SVE has Z registers instead."""
    return core(336 + number * 16, U128)


FPSR = core(848, U32)
FPCR = core(852, U32)


# SVE. A slice has 2048 bits of a Z register; slice 0 is enough for today's vector lengths.
def Z(number: int, slice_: int = 0) -> int:
    """Return SVE vector register Z0 to Z31."""
    return ARM64 | U2048 | SVE | number << 5 | slice_


def P(number: int, slice_: int = 0) -> int:
    """Return SVE predicate register P0 to P15."""
    return ARM64 | U256 | SVE | 0x400 | number << 5 | slice_


def FFR(slice_: int = 0) -> int:
    """Return the SVE first-fault register."""
    return ARM64 | U256 | SVE | 0x600 | slice_


V_REGISTERS = frozenset(map(V, range(32)))
Z_REGISTERS = frozenset(map(Z, range(32)))
P_REGISTERS = frozenset([*map(P, range(16)), FFR()])

SVE_VLS = ARM64 | U512 | SVE | 0xFFFF  # bit n: (n + 1) * 128 bits

MPIDR_EL1 = sysreg(3, 0, 0, 0, 5)

# Timers. TIMER_CVAL and TIMER_CNT have each other's encoding: a mistake in the ABI.
TIMER_CTL = sysreg(3, 3, 14, 3, 1)
TIMER_CVAL = sysreg(3, 3, 14, 0, 2)
TIMER_CNT = sysreg(3, 3, 14, 3, 2)
PTIMER_CTL = sysreg(3, 3, 14, 2, 1)
PTIMER_CVAL = sysreg(3, 3, 14, 2, 2)
PTIMER_CNT = sysreg(3, 3, 14, 0, 1)

# Arm's names. Their encodings would select other registers in KVM.
TIMERS = {
    "CNTV_CTL_EL0": TIMER_CTL,
    "CNTV_CVAL_EL0": TIMER_CVAL,
    "CNTVCT_EL0": TIMER_CNT,
    "CNTP_CTL_EL0": PTIMER_CTL,
    "CNTP_CVAL_EL0": PTIMER_CVAL,
    "CNTPCT_EL0": PTIMER_CNT,
}

PSCI_VERSION = fw(0)
SMCCC_ARCH_WORKAROUND_1 = fw(1)
SMCCC_ARCH_WORKAROUND_2 = fw(2)
SMCCC_ARCH_WORKAROUND_3 = fw(3)
STD_BMAP = bmap(0)
STD_HYP_BMAP = bmap(1)
VENDOR_HYP_BMAP = bmap(2)
VENDOR_HYP_BMAP_2 = bmap(3)

_ID = "0x[0-9a-fA-F]{1,16}"
_ENCODED = "S([0-9]+)_([0-9]+)_C([0-9]+)_C([0-9]+)_([0-9]+)"


_FIXED = (
    "SP_EL0", "PC", "PSTATE", "SP_EL1", "ELR_EL1", "SPSR_EL1", "SPSR_ABT", "SPSR_UND", "SPSR_IRQ",
    "SPSR_FIQ", "FPSR", "FPCR", "SVE_VLS", "TIMER_CTL", "TIMER_CVAL", "TIMER_CNT", "PTIMER_CTL",
    "PTIMER_CVAL", "PTIMER_CNT", "PSCI_VERSION", "SMCCC_ARCH_WORKAROUND_1",
    "SMCCC_ARCH_WORKAROUND_2", "SMCCC_ARCH_WORKAROUND_3", "STD_BMAP", "STD_HYP_BMAP",
    "VENDOR_HYP_BMAP", "VENDOR_HYP_BMAP_2",
)  # fmt: skip


# Built at first use: most runs need no names.
@functools.cache
def fixed() -> dict[str, int]:
    """Return the registers whose ids never change, by name."""
    return {
        **{name: globals()[name] for name in _FIXED},
        **{f"X{n}": X(n) for n in range(31)},
        **{f"V{n}": V(n) for n in range(32)},
        **{f"Z{n}": Z(n) for n in range(32)},
        **{f"P{n}": P(n) for n in range(16)},
        "FFR": FFR(),
        **{f"CCSIDR{n}": ccsidr(n) for n in range(14)},
    }


@functools.cache
def _names() -> dict[int, str]:
    return {reg_id: name for name, reg_id in fixed().items()}


def name(reg_id: int, sysregs: Mapping[int, str] | None = None) -> str:
    """Return the register's name, or a unique description.

    ``sysregs`` maps encodings to system registers' names. The default is the assembler's generic
    name, S3_0_C1_C0_0.
    """
    known = _names().get(reg_id)
    if known is not None:
        return known
    if reg_id == sysreg(*fields(reg_id)):
        known = sysregs.get(reg_id & 0xFFFF) if sysregs else None
        return known or "S{}_{}_C{}_C{}_{}".format(*fields(reg_id))
    return f"{reg_id:#x}"


def lookup(text: str, sysregs: Mapping[str, int] | None = None) -> int:
    """Return the id of the register with that name: the inverse of `name`.

    ``sysregs`` maps system registers' names to encodings. Timers have Arm's names too.

    Raises: KeyError, for an unknown name.
    """
    if text in fixed():
        return fixed()[text]
    if text in TIMERS:
        return TIMERS[text]
    if sysregs and text in sysregs:
        return ARM64 | U64 | SYSREG | sysregs[text]
    if re.fullmatch(_ID, text):
        return int(text, 16)
    if match := re.fullmatch(_ENCODED, text):
        op0, op1, crn, crm, op2 = map(int, match.groups())
        reg_id = sysreg(op0, op1, crn, crm, op2)
        if fields(reg_id) == (op0, op1, crn, crm, op2):  # each fits its bits
            return reg_id
    raise KeyError(text)
