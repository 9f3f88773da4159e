"""Machines as a user of the library sees them, on a real KVM."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.errors import GuestError
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.system import System
from pyvmm.memory.ram import GuestMemory
from tests.machine.conftest import SYSTEM_OFF, SYSTEM_RESET, Boot, Screen

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(("written", "code"), [(0, 0), (7, 7), (255, 255), (0x1_02, 2)])
def test_exit_register_ends_the_run_with_the_guests_code(
    boot: Boot, written: int, code: int
) -> None:
    machine = boot("store", x1=written, x2=layout.EXIT.base)

    assert machine.run() == code


@pytest.mark.parametrize("function", [SYSTEM_OFF, SYSTEM_RESET])
def test_psci_off_and_reset_end_the_run_with_code_0(boot: Boot, function: int) -> None:
    machine = boot("call")
    machine.vcpus[0].set_one_reg(regs.X(0), function)

    assert machine.run() == 0
    assert machine.was_reset == (function == SYSTEM_RESET)


def test_memory_is_freed_after_the_vm(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = boot("spin")
    vm = Path(f"/proc/self/fd/{machine.board.vm.fd}")
    vm_is_open: list[bool] = []
    free = GuestMemory.close

    def note(memory: GuestMemory) -> None:
        vm_is_open.append(vm.exists())
        free(memory)

    monkeypatch.setattr(GuestMemory, "close", note)

    machine.close()

    assert len(vm_is_open) == len(machine.board.slots.saved)
    assert not any(vm_is_open)


def test_boot_cpu_finds_the_device_tree_in_x0(boot: Boot) -> None:
    machine = boot("spin")

    address = machine.vcpus[0].get_one_reg(regs.X(0))

    assert address == machine.image.dtb
    assert machine.memory.read(address, 4) == bytes.fromhex("d00dfeed")
    assert machine.memory.read(address, len(machine.dtb)) == machine.dtb


def test_console_carries_both_ways_and_loses_nothing(boot: Boot, screen: Screen) -> None:
    machine = boot("echo", x2=layout.UART.base)
    typed = bytes(range(1, 101))
    left = bytearray(typed)
    room = threading.Event()
    machine.console.on_room(room.set)
    machine.start()

    while left:
        del left[: machine.console.send(bytes(left))]
        assert not left or room.wait(120)
        room.clear()
    deadline = time.monotonic() + 120
    while len(screen.text) < len(typed) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert screen.text == typed


def test_unclaimed_access_reads_zero_and_reaches_the_callback(boot: Boot) -> None:
    heard: list[tuple[int, Exit]] = []
    machine = boot(
        "load",
        x1=99,
        x2=layout.EXIT.base,
        on_unclaimed=lambda vcpu, access: heard.append((vcpu, access)),
    )
    machine.vcpus[0].set_one_reg(regs.X(3), layout.FLASH.base)

    assert machine.run() == 0
    assert [(vcpu, access.address, access.length) for vcpu, access in heard] == [
        (0, layout.FLASH.base, 4)
    ]


def test_access_that_is_not_emulated_is_a_guest_error(boot: Boot) -> None:
    machine = boot("atomic", x2=layout.UART.base)

    with pytest.raises(GuestError) as caught:
        machine.run()

    assert f"{layout.UART.base:#x}" in caught.value.message
    assert f"{machine.image.entry:#x}" in caught.value.message
    assert caught.value.exit_code == 1


def test_stop_from_another_thread_ends_the_run(boot: Boot) -> None:
    machine = boot("spin")
    threading.Timer(0.2, machine.stop, (5,)).start()

    assert machine.run() == 5


def test_close_ends_a_running_guest(boot: Boot) -> None:
    machine = boot("spin", vcpus=2)
    machine.start()
    before = threading.active_count()

    machine.close()
    machine.close()

    assert threading.active_count() == before - 2


def test_output_error_ends_the_run_and_is_raised(boot: Boot) -> None:
    def output(data: bytes) -> None:
        raise ValueError("no paper")

    machine = boot("flood", x1=65, x2=layout.UART.base, output=output)

    with pytest.raises(ValueError, match="no paper"):
        machine.run()


def test_exits_are_counted_by_device_and_direction(boot: Boot) -> None:
    machine = boot("store", x2=0x1234_0000)
    machine.start()
    deadline = time.monotonic() + 120
    while not machine.counts.exits()[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    machine.pause()

    assert machine.counts.exits() == [{"INTR": 1, "unclaimed write": 1}]


def test_kernel_counts_have_kvms_names(boot: Boot) -> None:
    machine = boot("store", x2=layout.EXIT.base)
    machine.run()

    with System.open() as system:
        offered = system.has(Cap.BINARY_STATS_FD)
    (counts,) = machine.counts.kernel() if offered else ({"exits": 1, "mmio_exit_user": 1},)

    assert counts["exits"] >= counts["mmio_exit_user"] >= 1
