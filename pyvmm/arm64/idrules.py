"""The rule of each field of the ID registers: which value of two hosts a guest can rely on.

A guest that moves between hosts must see a value that each of them keeps. Most fields count
features: the lower value promises less. The table holds the other fields.

Source of the principle: Arm ARM DDI 0487, D23.1.3, "Principles of the ID scheme for fields in ID
registers", and D23.2, the descriptions of the registers that the rows name.
tests/arm64/test_idrules.py compares the table with the kernel's, in arch/arm64/kernel/cpufeature.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final

from pyvmm.arm64 import sysregs
from pyvmm.arm64.bits import Field
from pyvmm.arm64.fields import FIELDS


class Rule(Enum):
    """The rule by which two values of a field combine."""

    LOWER = "the lower value promises less"
    SIGNED = "the lower value promises less, and 0xf is below 0"
    HIGHER = "the higher value demands more of the guest, and so is safe"
    HIGHER_OR_ZERO = "as the higher value, but 0 demands the most"
    NAME = "it names the CPU, and promises nothing: all guests get the first host's"
    EXACT = "no other value is safe"


# By register, then by field; "" is for all fields that are not named.
RULES: Final[dict[str, dict[str, Rule]]] = {
    "MIDR_EL1": {"": Rule.NAME},
    "REVIDR_EL1": {"": Rule.NAME},
    "AIDR_EL1": {"": Rule.NAME},
    "CLIDR_EL1": {"": Rule.EXACT},
    "DCZID_EL0": {"": Rule.EXACT},  # programs read the block size once
    "CTR_EL0": {
        "": Rule.LOWER,
        "CWG": Rule.HIGHER_OR_ZERO,  # software assumes the longest line; 0: 2 KiB
        "ERG": Rule.HIGHER_OR_ZERO,
        "L1Ip": Rule.EXACT,
    },
    "ID_AA64PFR0_EL1": {"FP": Rule.SIGNED, "AdvSIMD": Rule.SIGNED},
    "ID_AA64PFR1_EL1": {"MTE_frac": Rule.SIGNED},
    "ID_AA64DFR0_EL1": {
        "DoubleLock": Rule.SIGNED,
        "MTPMU": Rule.SIGNED,
        "PMUVer": Rule.EXACT,  # 0xf: a PMU of another kind
    },
    "ID_AA64ISAR1_EL1": {  # an algorithm, not a version
        "APA": Rule.EXACT, "API": Rule.EXACT, "GPA": Rule.EXACT, "GPI": Rule.EXACT,
    },
    "ID_AA64ISAR2_EL1": {"APA3": Rule.EXACT, "GPA3": Rule.EXACT},
    "ID_AA64MMFR0_EL1": {
        "TGran4": Rule.SIGNED,
        "TGran64": Rule.SIGNED,
        "TGran4_2": Rule.EXACT,  # 0 refers to another field
        "TGran64_2": Rule.EXACT,
        "TGran16_2": Rule.EXACT,
    },
    "ID_AA64MMFR1_EL1": {"SpecSEI": Rule.HIGHER},  # an SError that may come
    # AArch32, whose fields have no names here
    "ID_MMFR0_EL1": {"bits 31:28": Rule.SIGNED, "bits 11:8": Rule.SIGNED},  # InnerShr, OuterShr
    "ID_MMFR4_EL1": {"bits 3:0": Rule.HIGHER},  # SpecSEI
    "ID_DFR1_EL1": {"bits 3:0": Rule.SIGNED},  # MTPMU
    "ID_AA64MMFR4_EL1": {"E2H0": Rule.SIGNED},
}  # fmt: skip

UNNAMED: Final = (
    "reserved, or without a name here"  # the meaning of a field known by its bits alone
)

# Values that an EXACT field may have where hosts differ.
SAFE: Final[dict[tuple[str, str], int]] = {
    ("CTR_EL0", "L1Ip"): 2,  # VIPT: software that is right for it is right for PIPT
    ("ID_AA64MMFR0_EL1", "TGran4_2"): 1,  # NI
    ("ID_AA64MMFR0_EL1", "TGran64_2"): 1,
    ("ID_AA64MMFR0_EL1", "TGran16_2"): 1,
}

# Fields that KVM sets by a VM's features and devices: a model has those as features instead.
# Source: Linux, arch/arm64/kvm/sys_regs.c, read_sanitised_*() and set_id_*()
BY_FEATURE: Final[dict[str, frozenset[str]]] = {
    "ID_AA64PFR0_EL1": frozenset({"SVE", "GIC"}),
    "ID_AA64PFR1_EL1": frozenset({"MTE", "MTE_frac", "MTEX"}),
    "ID_AA64DFR0_EL1": frozenset({"PMUVer"}),
    "ID_DFR0_EL1": frozenset({"bits 27:24"}),  # PerfMon
    "ID_PFR1_EL1": frozenset({"bits 31:28"}),  # GIC
    "ID_AA64ISAR1_EL1": frozenset({"APA", "API", "GPA", "GPI"}),
    "ID_AA64ISAR2_EL1": frozenset({"APA3", "GPA3"}),
    "MPIDR_EL1": frozenset({""}),  # the VMM's choice
}


def rule(register: str, field: str) -> Rule:
    """Return the rule of a register's field."""
    rules = RULES.get(register, {})
    return rules.get(field) or rules.get("") or Rule.LOWER


def is_by_feature(register: str, field: str) -> bool:
    """Return whether KVM sets the field by the VM's features or devices."""
    names = BY_FEATURE.get(register, frozenset())
    return field in names or "" in names


def fields(register: str) -> tuple[Field, ...]:
    """Return the fields of an ID register, whose bits no other field has.

    A register without known fields has 16 fields of four bits, as the architecture gives ID
    registers: "bits 3:0" and so on. Bits between known fields are fields of that kind too.
    """
    layout = FIELDS.get(register)
    known = tuple(layout.fields()) if layout is not None else ()
    return tuple(sorted((*known, *_gaps(known)), key=lambda field: field.lo))


def find(name: str) -> Field | None:
    """Return the field that "REGISTER.FIELD" names; None if no ID register has it."""
    register, _, wanted = name.partition(".")
    if is_identification(register):
        for field in fields(register):
            if field.name == wanted:
                return field
    return None


def _gaps(known: tuple[Field, ...]) -> Iterator[Field]:
    """Yield fields of at most four bits for the bits that no known field has."""
    taken = 0
    for field in known:
        taken |= field.mask
    for nibble in range(0, 64, 4):
        low = None
        for number in range(nibble, nibble + 5):
            free = number < nibble + 4 and not taken >> number & 1
            if free and low is None:
                low = number
            elif not free and low is not None:
                gap = Field(number - 1, low, UNNAMED)
                gap.name = f"bits {number - 1}:{low}"
                yield gap
                low = None


def lacks(register: str, field: Field, promised: int, has: int) -> bool:
    """Return whether a host that ``has`` a value cannot give what the value ``promised`` says."""
    return promised != has and combined(register, field, promised, has) != promised


def combined(register: str, field: Field, a: int, b: int) -> int | None:
    """Return the value that both a host with ``a`` and one with ``b`` keep; None if there is none.

    Values are a field's, not a register's.
    """
    if a == b:
        return a
    match rule(register, field.name):
        case Rule.LOWER:
            return min(a, b)
        case Rule.SIGNED:
            return min(a, b, key=lambda value: _signed(field, value))
        case Rule.HIGHER:
            return max(a, b)
        case Rule.HIGHER_OR_ZERO:
            return 0 if 0 in (a, b) else max(a, b)
        case Rule.NAME:
            return a
        case _:
            return SAFE.get((register, field.name))


def _signed(field: Field, value: int) -> int:
    """Return the value as a two's complement number of the field's width."""
    return value - field.largest - 1 if value > field.largest >> 1 else value


def is_identification(name: str) -> bool:
    """Return whether a register describes the CPU, and its value is the same for a whole VM."""
    encoding = sysregs.ENCODINGS.get(name)
    if encoding is None:
        return False
    op0, op1, crn, crm = (encoding >> 14 & 3, encoding >> 11 & 7, encoding >> 7 & 15,
                          encoding >> 3 & 15)  # fmt: skip
    return op0 == 3 and op1 in (0, 1, 3) and crn == 0 and crm < 8


def show(register: str, field: Field, value: int) -> str:
    """Return a field's value as text: its name where it has one."""
    word = field.word(value << field.lo)
    return word if word == str(value) or word == f"{value:#x}" else f"{value} ({word})"
