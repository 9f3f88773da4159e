"""Virtio devices on a real machine: doorbells with and without a loop, and the end of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import pyvmm
from pyvmm import layout
from pyvmm.config import Config, Rng
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine

pytestmark = pytest.mark.kvm

GUEST = Path(pyvmm.__file__).parent / "guests/virtio-console"
EOT = b"\x04"

Make = Callable[..., Machine]


class Screen:
    """Takes a guest's output while it is on."""

    def __init__(self) -> None:
        self.text = b""
        self.lines: list[str] = []
        self.on = threading.Event()
        self.on.set()
        self.entered = threading.Event()

    def set_blocking(self, blocking: bool) -> None:
        """Turn on when output must not block."""
        if not blocking:
            self.on.set()

    def write(self, data: bytes) -> None:
        self.entered.set()
        self.on.wait()
        self.text += data

    def wait_for(self, text: bytes) -> bool:
        deadline = time.monotonic() + 120
        while text not in self.text and time.monotonic() < deadline:
            time.sleep(0.01)
        return text in self.text


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def make(screen: Screen) -> Iterator[Make]:
    with ExitStack() as stack:

        def machine(params: str = "", **options: Any) -> Machine:
            config = Config(
                image=GUEST, params=params, console="virtio", vcpus=1, memory=16 * MIB, **options
            )
            made = Machine(
                config, screen.write, set_blocking=screen.set_blocking, log=screen.lines.append
            )
            return stack.enter_context(made)

        yield machine


def type_all(machine: Machine, data: bytes) -> None:
    """Send input from a thread of its own, waiting for room."""
    room = threading.Event()
    machine.console.on_room(room.set)

    def work() -> None:
        left = data
        while left:
            room.clear()
            taken = machine.console.send(left)
            left = left[taken:]
            if not taken and not room.wait(120):
                return

    threading.Thread(target=work).start()


def test_console_works_in_a_loop(make: Make, screen: Screen) -> None:
    machine = make(timeout_s=120.0)

    type_all(machine, b"hello\n" + EOT)

    assert machine.run() == 0
    assert b"ready\nhello\necho: 6 bytes" in screen.text


def test_console_works_without_a_loop(make: Make, screen: Screen) -> None:
    machine = make()
    type_all(machine, b"x" * 100_000 + EOT)

    machine.start()

    assert screen.wait_for(b"echo: 100000 bytes")
    assert screen.text.count(b"x") == 100_000


def test_doorbell_reaches_the_loop_without_an_exit(
    make: Make, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make("drain=200000", timeout_s=120.0)
    console = machine.board.virtio[0]
    writes = []
    write = console.mmio_write

    def counted(offset: int, length: int, value: int) -> None:
        writes.append((offset, value))
        write(offset, length, value)

    monkeypatch.setattr(console, "mmio_write", counted)
    type_all(machine, bytes(200_000))

    assert machine.run() == 0
    assert (VirtioMmio.QueueNotify.offset, 0) not in writes
    assert (VirtioMmio.QueueNotify.offset, 1) in writes


@pytest.mark.parametrize("fast", [True, False])
def test_interrupts_are_acknowledged_with_and_without_python(
    make: Make, screen: Screen, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    machine = make(timeout_s=120.0, fast_mmio=fast)
    console = machine.board.virtio[0]
    asked, read, write = set(), console.mmio_read, console.mmio_write

    def reading(offset: int, length: int) -> int:
        asked.add(offset)
        return read(offset, length)

    def writing(offset: int, length: int, value: int) -> None:
        asked.add(offset)
        write(offset, length, value)

    monkeypatch.setattr(console, "mmio_read", reading)
    monkeypatch.setattr(console, "mmio_write", writing)
    type_all(machine, b"x" * 100_000 + EOT)

    assert machine.run() == 0
    assert b"echo: 100000 bytes" in screen.text
    (counts,) = machine.counts.exits()
    completed = counts.get("virtio interrupt read", 0), counts.get("virtio interrupt write", 0)
    of_interrupts = {VirtioMmio.InterruptStatus.offset, VirtioMmio.InterruptACK.offset}
    assert of_interrupts & asked == (set() if fast else of_interrupts)
    assert (min(completed) > 0) == fast


def test_stop_ends_a_guest_while_its_output_blocks(make: Make, screen: Screen) -> None:
    machine = make(f"flood={256 * MIB}")
    screen.on.clear()
    machine.start()
    assert screen.entered.wait(120)

    machine.stop(5)
    machine.close()

    assert machine.result() == 5
    assert len(screen.text) < MIB


def test_output_error_ends_the_run_and_releases_the_memory(make: Make) -> None:
    def output(data: bytes) -> None:
        raise ValueError("no paper")

    machine = make(timeout_s=120.0)
    console = machine.board.console
    console.output = output

    with pytest.raises(ValueError, match="no paper"):
        machine.run()
    machine.close()


def test_size_of_the_terminal_reaches_the_guest(make: Make, screen: Screen) -> None:
    machine = make("resize")
    machine.console.resize(80, 25)
    machine.start()
    assert screen.wait_for(b"80 columns, 25 rows\n")

    machine.console.resize(132, 43)

    assert screen.wait_for(b"132 columns, 43 rows\n")


def test_devices_are_in_their_slots_in_the_device_tree_and_in_the_description(make: Make) -> None:
    machine = make(devices=(Rng(), Rng()), timeout_s=120.0)

    described = machine.devices()

    assert [device["region"] for device in described] == ["virtio0", "virtio1", "virtio2"]
    assert [device["device"] for device in described] == [
        "virtio-console",
        "virtio-rng",
        "virtio-rng",
    ]
    assert described[1]["status"] == []
    assert described[1]["queues"][0]["ready"] is False
    for slot in range(3):
        assert b"virtio@%x\0" % layout.virtio(slot).base in machine.dtb
    assert b"virtio@%x\0" % layout.virtio(3).base not in machine.dtb


def test_faulty_driver_is_logged_in_one_line(make: Make, screen: Screen) -> None:
    machine = make("break", timeout_s=120.0)

    assert machine.run() == 0
    assert len(screen.lines) == 1
    assert b"and works again" in screen.text
