"""The result of exits that end a run, and the errors of a KVM_RUN that fails."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.pmem import VirtioPmem
from pyvmm.errors import GuestError, KvmError
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason, SystemEvent
from pyvmm.machine.exits import explain, result_of

VCPU: Any = SimpleNamespace(id=3, get_one_reg=lambda reg: 0x8008_0004)
BAD_ADDRESS = KvmError("KVM_RUN", "vcpu 0", errno.EFAULT)


def slot(missing: int = 0, is_full: bool = False) -> VirtioMmio:
    """Make persistent memory in a slot, on a file in that state."""
    pmem: Any = VirtioPmem.__new__(VirtioPmem)
    pmem.content = SimpleNamespace(missing=missing, is_full=is_full)
    pmem.backing, pmem.size = "/a/file", 4096
    return cast("VirtioMmio", SimpleNamespace(device=pmem))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"missing": 512}, "`devices.pmem` /a/file: the file became 512 bytes shorter"),
        ({"is_full": True}, "`devices.pmem` /a/file: no space is left"),
    ],
)
def test_explain_names_the_file_after_a_bad_address(state: dict[str, Any], words: str) -> None:
    explained = explain(BAD_ADDRESS, [slot(), slot(**state)])

    assert explained.message.startswith(words)
    assert explained.hint is not None
    assert "Bad address" in explained.hint


def test_explain_returns_other_errors_unchanged() -> None:
    other = KvmError("KVM_RUN", "vcpu 0", errno.EINVAL)

    assert explain(other, [slot(missing=1)]) is other
    assert explain(BAD_ADDRESS, [slot()]) is BAD_ADDRESS
    assert explain(BAD_ADDRESS, []) is BAD_ADDRESS


def leave(reason: int, **fields: int) -> Exit:
    """Make an exit with the fields of its reason."""
    made = Exit(reason)
    made.fields = fields
    return made


@pytest.mark.parametrize("event", [SystemEvent.SHUTDOWN, SystemEvent.RESET])
def test_result_is_zero_after_power_off_and_reset(event: int) -> None:
    assert result_of(VCPU, leave(ExitReason.SYSTEM_EVENT, type=event)) == 0


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (leave(ExitReason.SYSTEM_EVENT, type=SystemEvent.CRASH), "it has crashed"),
        (leave(ExitReason.SYSTEM_EVENT, type=77), "type=0x4d"),
        (leave(ExitReason.FAIL_ENTRY, hardware_entry_failure_reason=5), "FAIL_ENTRY"),
        (leave(ExitReason.INTERNAL_ERROR, suberror=1), "INTERNAL_ERROR"),
        (leave(ExitReason.ARM_NISV, fault_ipa=0x900_0000, esr_iss=0x10), "0x9000000"),
        (leave(99), "exit 99"),
    ],
)
def test_result_is_an_error_with_the_pc_after_a_fatal_exit(exit_: Exit, words: str) -> None:
    error = result_of(VCPU, exit_)

    assert isinstance(error, GuestError)
    assert "vCPU 3 at PC 0x80080004" in error.message
    assert words in error.message
