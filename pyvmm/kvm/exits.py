"""The exits of KVM_RUN on arm64, and struct kvm_run's part for each."""

from __future__ import annotations

from collections.abc import Mapping

from pyvmm.kvm.structs import Buffer, Struct, words
from pyvmm.kvm.uapi import ExitReason, InternalError, SystemEvent, named

UNION_OFFSET = 32  # of the part of struct kvm_run that depends on the exit
UNION_SIZE = 256


def _part(members: str, newer: str = "") -> Struct:
    return Struct("struct kvm_run", members, at=UNION_OFFSET, newer=newer)


# In the order of struct kvm_run.
PARTS: dict[int, Struct] = {
    ExitReason.UNKNOWN: _part("u64 hw.hardware_exit_reason"),
    ExitReason.FAIL_ENTRY: _part(
        """
        u64 fail_entry.hardware_entry_failure_reason
        u32 fail_entry.cpu
        """
    ),
    ExitReason.DEBUG: _part(
        """
        u32 debug.arch.hsr
        u32 debug.arch.hsr_high
        u64 debug.arch.far
        """
    ),
    ExitReason.MMIO: _part(
        """
        u64 mmio.phys_addr
        u8  mmio.data[8]
        u32 mmio.len
        u8  mmio.is_write
        """
    ),
    ExitReason.HYPERCALL: _part(
        """
        u64 hypercall.nr
        u64 hypercall.args[6]
        u64 hypercall.ret
        u64 hypercall.flags
        """,
        newer="KVM_ARM_VM_SMCCC_FILTER",
    ),
    ExitReason.INTERNAL_ERROR: _part(
        """
        u32 internal.suberror
        u32 internal.ndata
        u64 internal.data[16]
        """
    ),
    ExitReason.SYSTEM_EVENT: _part(
        """
        u32 system_event.type
        u32 system_event.ndata
        u64 system_event.data[16]
        """
    ),
    ExitReason.ARM_NISV: _part(
        """
        u64 arm_nisv.esr_iss
        u64 arm_nisv.fault_ipa
        """
    ),
    ExitReason.MEMORY_FAULT: _part(
        """
        u64 memory_fault.flags
        u64 memory_fault.gpa
        u64 memory_fault.size
        """,
        newer="KVM_EXIT_MEMORY_FAULT",
    ),
    ExitReason.ARM_SEA: _part(
        """
        u64 arm_sea.flags
        u64 arm_sea.esr
        u64 arm_sea.gva
        u64 arm_sea.gpa
        """,
        newer="KVM_EXIT_ARM_SEA",
    ),
    ExitReason.ARM_LDST64B: _part(
        """
        u64 arm_nisv.esr_iss
        u64 arm_nisv.fault_ipa
        """
    ),
}

_NO_FIELDS: Mapping[str, int] = {}


class Exit:
    """A VM exit: a copy, which the next run does not change.

    ``reason`` is an ExitReason, or an int for a reason newer than pyvmm.

    - MMIO: ``address``, ``length`` (bytes), ``is_write``, and ``data``, the little-endian value
      written. After a read, call Vcpu.set_mmio_data before the next run.
    - INTR: a kick or a signal ended the run.
    - Others: ``fields``, struct kvm_run's members for that exit by the kernel's names, and
      ``array``, its data or arguments. SYSTEM_EVENT also has ``type``, a SystemEvent.
    """

    __slots__ = ("address", "array", "data", "fields", "is_write", "length", "reason")

    def __init__(
        self,
        reason: int,
        address: int = 0,
        length: int = 0,
        is_write: bool = False,
        data: int = 0,
    ) -> None:
        self.reason = reason
        self.address = address
        self.length = length
        self.is_write = is_write
        self.data = data
        self.fields: Mapping[str, int] = _NO_FIELDS
        self.array: tuple[int, ...] = ()

    @property
    def type(self) -> int:
        """SYSTEM_EVENT: the guest's request, a SystemEvent if pyvmm knows it."""
        return self.fields["type"]

    def __str__(self) -> str:
        name = reason_name(self.reason)
        if self.reason == ExitReason.MMIO:
            what = f"write of {self.data:#x}" if self.is_write else "read"
            return f"{name} {self.length}-byte {what} at {self.address:#x}"
        shown: dict[str, int | tuple[int, ...]] = dict(self.fields)
        if self.array:
            shown["data"] = self.array
        return f"{name} {words(shown)}".rstrip()


def reason_name(reason: int) -> str:
    """Return an exit reason's name, or its number in words."""
    known = named(ExitReason, reason)
    return known.name if isinstance(known, ExitReason) else f"exit {reason}"


def decode(reason: int, union: Buffer) -> Exit:
    """Return the exit for that reason, from the part of struct kvm_run at UNION_OFFSET."""
    if reason not in PARTS:
        return Exit(named(ExitReason, reason))
    fields = PARTS[reason].unpack(union)
    arrays = PARTS[reason].unpack_arrays(union)
    for name, meaning in (("type", SystemEvent), ("suberror", InternalError)):
        if name in fields:
            fields[name] = named(meaning, fields[name])
    result = Exit(ExitReason(reason))
    if arrays:
        (array,) = arrays.values()
        result.array = array[: fields.get("ndata", len(array))]
    result.fields = fields
    result.data = result.array[0] if result.array else 0
    return result
