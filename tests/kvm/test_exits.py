from __future__ import annotations

import struct

from pyvmm.kvm.exits import UNION_SIZE, Exit, decode, reason_name
from pyvmm.kvm.uapi import ExitReason, InternalError, SystemEvent


def union(layout: str, *values: int) -> bytes:
    """Return the exit's part of struct kvm_run with these first members."""
    return struct.pack(layout, *values).ljust(UNION_SIZE, b"\xee")


def test_system_event_has_its_type_and_its_words() -> None:
    taken = decode(24, union("<II3Q", 2, 2, 10, 11, 12))

    assert (taken.reason, taken.type) == (ExitReason.SYSTEM_EVENT, SystemEvent.RESET)
    assert (taken.array, taken.data) == ((10, 11), 10)
    assert str(taken) == "SYSTEM_EVENT type=RESET, ndata=2, data=[0xa 0xb]"


def test_system_event_type_stays_a_number_when_unknown() -> None:
    taken = decode(24, union("<II", 99, 0))

    assert taken.type == 99
    assert str(taken) == "SYSTEM_EVENT type=0x63, ndata=0"
    assert taken.data == 0


def test_internal_error_names_the_suberror() -> None:
    taken = decode(17, union("<II2Q", 1, 1, 7, 8))

    assert taken.fields["suberror"] == InternalError.EMULATION
    assert taken.array == (7,)


def test_fail_entry_has_reason_and_cpu() -> None:
    taken = decode(9, union("<QI", 1, 3))

    assert taken.fields == {"hardware_entry_failure_reason": 1, "cpu": 3}


def test_debug_has_syndrome_and_address() -> None:
    taken = decode(4, union("<IIQ", 0xCA00_0022, 0, 0x8000_1000))

    assert str(taken) == "DEBUG hsr=0xca000022, hsr_high=0, far=0x80001000"


def test_exit_without_fields_has_its_name() -> None:
    assert str(decode(31, union("<Q", 0))) == "DIRTY_RING_FULL"


def test_exit_keeps_its_number_when_unknown() -> None:
    taken = decode(1234, union("<Q", 0))

    assert taken.reason == 1234
    assert str(taken) == "exit 1234"


def test_mmio_exit_describes_the_access() -> None:
    assert str(Exit(ExitReason.MMIO, 0x100_0000, 1, True, 0x41)) == (
        "MMIO 1-byte write of 0x41 at 0x1000000"
    )
    assert str(Exit(ExitReason.MMIO, 0x100_0005, 4)) == "MMIO 4-byte read at 0x1000005"


def test_reason_name_is_the_kernels_name_or_the_number() -> None:
    assert (reason_name(6), reason_name(1234)) == ("MMIO", "exit 1234")
