"""A host's CPU as its guests see it, in the JSON that ``pyvmm doctor`` prints there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pyvmm.arm64 import idrules, vl
from pyvmm.arm64.bits import Field
from pyvmm.base.documents import read_document
from pyvmm.base.records import Record, made

WHAT: Final = "the JSON that `pyvmm doctor` prints"
HOW: Final = "use what `pyvmm doctor` prints on that host as JSON"
# The fields that say which algorithm pointer authentication has, and their names
PAUTH: Final = {
    ("ID_AA64ISAR1_EL1", "APA"): "QARMA5",
    ("ID_AA64ISAR1_EL1", "API"): "IMPLEMENTATION DEFINED",
    ("ID_AA64ISAR2_EL1", "APA3"): "QARMA3",
}


class CpuHost(Record, kw_only=True):
    """What a host gives a vCPU with all its features.

    ``registers`` are values by Arm's name, ``writable`` the bits that KVM lets a VMM change.
    ``pauth`` is the algorithm and version of pointer authentication, or empty. Lengths are in bits.
    """

    registers: dict[str, int]
    writable: dict[str, int] = made(dict)
    vls: vl.VlSet = vl.NO_SVE
    pauth: str = ""
    counter_hz: int = 0

    def can_write(self, register: str, field: Field) -> bool:
        """Return whether KVM lets a VMM change the whole field."""
        return self.writable.get(register, 0) & field.mask == field.mask


def pauth_of(registers: dict[str, int]) -> str:
    """Return the algorithm and version of pointer authentication that registers show."""
    for (register, name), algorithm in PAUTH.items():
        for field in idrules.fields(register):
            value = int(field.get(registers.get(register, 0)))
            if field.name == name and value:
                return f"{algorithm} {field.word(value << field.lo)}"
    return ""


def read_host(path: Path) -> CpuHost:
    """Return the host whose JSON is in a file.

    Raises: UsageError, if the file holds something else, or an older pyvmm wrote it.
    """
    return read_document(path, of_document, WHAT, HOW)


def of_document(document: dict[str, Any]) -> CpuHost:
    """Return the host in a document.

    Raises: ValueError, KeyError or TypeError, if it is not one.
    """
    kvm = document["kvm"]
    registers = _numbers(document["registers"])
    return CpuHost(
        registers=registers,
        writable=_numbers(document["writable_id_bits"]),
        vls=frozenset(int(length) for length in kvm["sve_vector_lengths"]),
        pauth=pauth_of(registers) if "PAUTH" in kvm["cpu_features"].split(",") else "",
        counter_hz=int(kvm["counter_hz"]),
    )


def _numbers(table: dict[str, str]) -> dict[str, int]:
    numbers = {str(name): int(value, 16) for name, value in table.items()}
    if not all(0 <= number < 1 << 64 for number in numbers.values()):
        raise ValueError("a register has 64 bits")
    return numbers
