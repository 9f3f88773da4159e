"""Saved states of devices: a restore continues the saved device or raises an error."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from pyvmm.devices.device import Device
from pyvmm.devices.exit import ExitRegister
from pyvmm.devices.pc16550d import IER_RDI, LCR_DLAB, LSR_BI
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.state import StateError
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.conftest import Rig
from tests.devices.virtio.driver import RAM_SIZE, Buffer

MUTANTS = 1000


def moved(device: Device, other: Device) -> Any:
    """Restore the state of ``device`` in ``other``, through JSON."""
    state = json.loads(json.dumps(device.state()))
    other.restore(state, "it")
    assert other.state() == device.state()
    return state


def make_uart() -> tuple[Uart8250, list[bool], bytearray]:
    levels: list[bool] = []
    sent = bytearray()
    return Uart8250(levels.append, sent.extend), levels, sent


def test_restored_uart_has_the_input_of_its_fifo_and_line() -> None:
    one, _, _ = make_uart()
    one.mmio_write(2, 1, 0xC1)
    one.mmio_write(1, 1, IER_RDI)
    one.receive(b"0123456789abcdefghij")
    one.receive_break()
    one.mmio_write(7, 1, 0x5A)
    other, levels, _ = make_uart()

    moved(one, other)

    assert levels == []  # the line's level is in the GIC's state
    text = bytes(other.mmio_read(0, 1) for _ in range(20))
    assert text == b"0123456789abcdefghij"
    assert other.mmio_read(5, 1) & LSR_BI
    assert other.mmio_read(0, 1) == 0
    assert levels == [False]
    assert other.mmio_read(7, 1) == 0x5A


def test_restored_uart_shows_the_divisor_when_selected() -> None:
    one, _, _ = make_uart()
    one.mmio_write(3, 1, LCR_DLAB)
    one.mmio_write(0, 1, 0x0C)
    other, _, _ = make_uart()

    moved(one, other)

    assert other.mmio_read(0, 1) == 0x0C


def test_restored_clock_raises_an_alarm_missed_since_the_save() -> None:
    now = [1000.0]
    one = Pl031(lambda level: None, clock=lambda: now[0])
    one.mmio_write(Pl031.LR.offset, 4, 50)
    one.mmio_write(Pl031.MR.offset, 4, 60)
    one.mmio_write(Pl031.IMSC.offset, 4, 1)
    levels: list[bool] = []
    other = Pl031(levels.append, clock=lambda: now[0])

    moved(one, other)
    now[0] += 15
    other.tick()

    assert other.mmio_read(Pl031.DR.offset, 4) == 65
    assert levels == [True]


def rig_with_input() -> tuple[GuestMemory, Rig, dict[int, int]]:
    memory = GuestMemory(RAM_BASE, RAM_SIZE)
    rig = Rig(memory)
    rig.driver.start(wanted=-1)
    rig.pass_time()
    places = rig.give_room(16, 16, 16)
    assert rig.console.receive(b"first") == 5
    return memory, rig, places


def test_restored_console_uses_its_old_buffers() -> None:
    memory, rig, places = rig_with_input()
    rig.console.resize(132, 50)
    state = json.loads(json.dumps(rig.mmio.state()))
    rig.console.stop()
    again = Rig(memory)

    again.mmio.restore(state, "it")
    again.mmio.resume()
    assert again.mmio.state() == state
    again.driver.rings = rig.driver.rings
    assert again.console.receive(b"second") == 6

    assert again.take_input(places) == b"firstsecond"
    assert (again.console.cols, again.console.rows) == (132, 50)
    again.console.stop()
    memory.close()


def test_resume_repeats_an_unacknowledged_interrupt() -> None:
    memory, rig, _ = rig_with_input()
    state = rig.mmio.state()
    rig.driver.acknowledge()
    quiet = rig.mmio.state()
    rig.console.stop()

    counts = []
    for held in (state, quiet):
        again = Rig(memory)
        again.mmio.restore(held, "it")
        again.mmio.resume()
        counts.append(again.interrupts)
        again.console.stop()

    assert counts == [1, 0]
    memory.close()


def test_resume_finds_output_without_a_kick() -> None:
    memory, rig, _ = rig_with_input()
    state = rig.mmio.state()
    rig.console.stop()
    again = Rig(memory)
    again.driver.rings = rig.driver.rings
    again.driver.ram = rig.driver.ram

    again.mmio.restore(state, "it")
    again.transmitq.add(Buffer(again.driver.ram.put(b"late"), 4))
    again.mmio.resume()

    assert again.sent == b"late"
    again.console.stop()
    memory.close()


def test_restore_refuses_the_state_of_another_device() -> None:
    memory, rig, _ = rig_with_input()
    state = copy.deepcopy(rig.mmio.state())
    state["registers"]["DeviceID"] = 2

    with pytest.raises(StateError, match="a virtio device 2 of version 2 where"):
        Rig(memory).mmio.restore(state, "virtio0")

    state = copy.deepcopy(rig.mmio.state())
    state["virtio"]["config"]["max_nr_ports"] = 9
    with pytest.raises(StateError, match="max_nr_ports was 9, and is 0 here"):
        Rig(memory).mmio.restore(state, "virtio0")
    rig.console.stop()


def mutated(rng: random.Random, state: Any) -> Any:
    """Return a copy with a random value changed or removed."""
    state = copy.deepcopy(state)
    place = state
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    odd: list[Any] = [
        None,
        -1,
        2**64,
        2**65,
        True,
        "x",
        [],
        {},
        1.5,
        3,
        0xFFFF,
        [1] * 20,
        0x8000_0000,
    ]
    if isinstance(place, dict) and rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(odd)
    return state


@pytest.mark.parametrize("which", ["uart", "rtc", "exit", "virtio"])
def test_restore_accepts_or_refuses_a_damaged_state(which: str) -> None:
    memory, rig, _ = rig_with_input()
    made: dict[str, tuple[Device, Any]] = {
        "uart": (make_uart()[0], lambda: make_uart()[0]),
        "rtc": (Pl031(lambda level: None), lambda: Pl031(lambda level: None)),
        "exit": (ExitRegister(lambda code: None), lambda: ExitRegister(lambda code: None)),
        "virtio": (rig.mmio, lambda: Rig(memory).mmio),
    }
    device, fresh = made[which]
    state = device.state()
    rng = random.Random(5)
    refused = 0

    for _ in range(MUTANTS):
        other = fresh()
        try:
            other.restore(mutated(rng, state), "it")
            for offset in range(0, 0x100, 4):
                other.mmio_read(offset, 4)
            if isinstance(other, VirtioMmio):
                other.resume()
        except StateError:
            refused += 1
        if isinstance(other, VirtioMmio):
            other.device.stop()

    assert refused > MUTANTS / 10
    rig.console.stop()
