"""The result of exits that end a run, and the errors of a KVM_RUN that fails."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyvmm import layout
from pyvmm.devices.bus import NO_DEVICE, Bus
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.pmem import VirtioPmem
from pyvmm.errors import GuestError, KvmError, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason, SystemEvent
from pyvmm.machine.exits import explain, result_of

PC = 0x8008_0004
STORE = 0xB800_4401  # str w1, [x0], #4
MMU_ON = 1
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


def ended(exit_: Exit, why: str = "") -> int | VmmError:
    """Return the result of an exit of vCPU 3 at PC, with a UART."""
    vcpu: Any = SimpleNamespace(id=3, get_one_reg={regs.PC: PC}.__getitem__)
    bus = Bus()
    bus.add(layout.uart(0), NO_DEVICE)
    return result_of(vcpu, exit_, bus, why)


def leave(reason: int, **fields: int) -> Exit:
    """Make an exit with the fields of its reason."""
    made = Exit(reason)
    made.fields = fields
    return made


@pytest.mark.parametrize("event", [SystemEvent.SHUTDOWN, SystemEvent.RESET])
def test_result_is_zero_after_power_off_and_reset(event: int) -> None:
    assert ended(leave(ExitReason.SYSTEM_EVENT, type=event)) == 0


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (leave(ExitReason.SYSTEM_EVENT, type=SystemEvent.CRASH), "it has crashed"),
        (leave(ExitReason.SYSTEM_EVENT, type=77), "type=0x4d"),
        (leave(ExitReason.FAIL_ENTRY, hardware_entry_failure_reason=5), "FAIL_ENTRY"),
        (leave(ExitReason.INTERNAL_ERROR, suberror=1), "INTERNAL_ERROR"),
        (leave(99), "exit 99"),
    ],
)
def test_result_is_an_error_with_the_pc_after_a_fatal_exit(exit_: Exit, words: str) -> None:
    error = ended(exit_)

    assert isinstance(error, GuestError)
    assert "vCPU 3 at PC 0x80080004" in error.message
    assert words in error.message


@pytest.mark.parametrize(
    ("address", "place"),
    [
        (layout.UART.base + 4, "uart0 at 0x1000004"),
        (layout.GICD.base, "the interrupt controller at 0x3fff0000"),
        (0x900_0000, "guest address 0x9000000, where there is no device and no RAM"),
    ],
)
def test_access_without_a_syndrome_names_its_place_and_the_reason(address: int, place: str) -> None:
    exit_ = leave(ExitReason.ARM_NISV, fault_ipa=address, esr_iss=0x10)

    error = ended(exit_, "pyvmm does not emulate `dc zva, x0`")

    assert isinstance(error, GuestError)
    assert error.message == (
        f"vCPU 3 at PC {PC:#x} accessed {place}, without a syndrome: pyvmm does not emulate "
        "`dc zva, x0` (ISS 0x10)"
    )
