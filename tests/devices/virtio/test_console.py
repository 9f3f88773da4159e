"""The console, used by its driver and the machine."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest

from pyvmm.devices.virtio.console import after
from pyvmm.layout import MIB
from tests.devices.virtio.conftest import RECEIVEQ, TRANSMITQ, Rig
from tests.devices.virtio.driver import (
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT,
    NEEDS_RESET,
    Buffer,
)

F_SIZE, F_EMERG_WRITE = 1 << 0, 1 << 2
USED, CONFIG = 1, 2  # InterruptStatus


class Gate:
    """An output that blocks until it is opened."""

    def __init__(self, rig: Rig) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.rig = rig
        rig.console.output = self.take

    def take(self, data: bytes) -> None:
        self.entered.set()
        assert self.open.wait(120)
        self.rig.sent += data


# Output


@pytest.mark.parametrize("wanted", [-1, 0, F_EVENT_IDX, F_INDIRECT])
def test_guests_buffers_are_output_and_returned(any_rig: Rig, wanted: int) -> None:
    any_rig.driver.start(wanted=wanted)

    first = any_rig.send(b"hello, ", b"wor", b"ld")
    second = any_rig.send(b"!")

    assert any_rig.sent == b"hello, world!"
    assert any_rig.transmitq.take_used() == [(first, 0), (second, 0)]


def test_indirect_table_is_output(any_rig: Rig) -> None:
    any_rig.driver.start()
    parts = [b"in", b"", b"direct"]

    ram = any_rig.driver.ram
    head = any_rig.transmitq.indirect([Buffer(ram.put(part), len(part)) for part in parts])
    any_rig.transmitq.publish(head)
    any_rig.driver.kick(TRANSMITQ)

    assert any_rig.sent == b"indirect"
    assert any_rig.transmitq.take_used() == [(head, 0)]


def test_used_buffers_interrupt(any_rig: Rig) -> None:
    any_rig.driver.start()
    before = any_rig.interrupts

    any_rig.send(b"x")

    assert any_rig.interrupts == before + 1
    assert any_rig.driver.acknowledge() == USED
    assert any_rig.driver.read(0x060) == 0


def test_interrupt_is_not_raised_when_the_driver_wants_none(rig: Rig) -> None:
    rig.driver.start(wanted=0)
    rig.transmitq.set_no_interrupt(True)

    rig.send(b"x")

    assert rig.sent == b"x"
    assert rig.interrupts == 0


def test_blocked_output_delays_neither_input_nor_registers(rig: Rig) -> None:
    gate = Gate(rig)
    rig.driver.start()
    places = rig.give_room(16)
    vcpu = threading.Thread(target=rig.send, args=(b"out",))

    vcpu.start()
    assert gate.entered.wait(120)
    taken = rig.console.receive(b"in")
    status = rig.driver.status
    gate.open.set()
    vcpu.join(120)

    assert taken == 2
    assert rig.take_input(places) == b"in"
    assert status & DRIVER_OK
    assert rig.sent == b"out"


def test_buffer_is_returned_after_its_output(rig: Rig) -> None:
    gate = Gate(rig)
    rig.driver.start()
    vcpu = threading.Thread(target=rig.send, args=(b"out",))

    vcpu.start()
    assert gate.entered.wait(120)
    early = rig.transmitq.take_used()
    gate.open.set()
    vcpu.join(120)

    assert early == []
    assert len(rig.transmitq.take_used()) == 1


def test_reset_during_output_drops_the_buffer_and_does_not_wait(rig: Rig) -> None:
    gate = Gate(rig)
    rig.driver.start()
    old = rig.transmitq
    vcpu = threading.Thread(target=rig.send, args=(bytes(200_000),))

    vcpu.start()
    assert gate.entered.wait(120)
    rig.driver.start()
    interrupts = rig.interrupts
    gate.open.set()
    vcpu.join(120)

    assert old.take_used() == []
    assert rig.transmitq.take_used() == []
    assert rig.interrupts == interrupts
    assert len(rig.sent) < 200_000
    rig.send(b"after")
    assert rig.sent.endswith(b"after")


def test_stop_ends_a_long_output(rig: Rig) -> None:
    gate = Gate(rig)
    rig.driver.start()
    one = rig.driver.ram.put(bytes(MIB))
    rig.transmitq.add(*[Buffer(one, MIB)] * 60)
    vcpu = threading.Thread(target=rig.driver.kick, args=(TRANSMITQ,))

    vcpu.start()
    assert gate.entered.wait(120)
    rig.console.stop()
    gate.open.set()
    vcpu.join(120)

    assert len(rig.sent) < MIB


def test_failed_output_releases_guest_memory(rig: Rig) -> None:
    def fail(data: bytes) -> None:
        raise ValueError("no paper")

    rig.console.output = fail
    rig.driver.start()

    with pytest.raises(ValueError, match="no paper"):
        rig.send(b"x")

    rig.console.stop()
    rig.memory.close()


def test_sixteen_mebibytes_are_output(any_rig: Rig) -> None:
    rng = random.Random(3)
    driver, total, digest = any_rig.driver, 16 * MIB, hashlib.sha256()
    received = hashlib.sha256()
    any_rig.console.output = received.update
    driver.start()
    slots = [driver.ram.take(PART) for _ in range(48)]

    while total:
        heads = []
        for slot in slots[: rng.randrange(1, len(slots))]:
            data = rng.randbytes(min(total, rng.randrange(PART)))
            total -= len(data)
            digest.update(data)
            driver.ram.memory.write(slot, data)
            heads.append(any_rig.transmitq.chain([Buffer(slot, len(data))]))
        any_rig.transmitq.publish(*heads)
        driver.kick_if_wanted(TRANSMITQ)
        assert [head for head, _ in any_rig.transmitq.take_used()] == heads

    assert received.digest() == digest.digest()


PART = 16384


# Input


def test_input_goes_into_the_buffers_in_order(any_rig: Rig) -> None:
    any_rig.driver.start()
    places = any_rig.give_room(4, 16)

    taken = any_rig.console.receive(b"0123456789")

    assert taken == 10
    assert any_rig.take_input(places) == b"0123456789"
    assert any_rig.driver.acknowledge() == USED


def test_receive_takes_nothing_before_the_driver_is_ready(rig: Rig) -> None:
    assert rig.console.receive(b"early") == 0

    rig.driver.negotiate()
    rig.driver.rings = [rig.driver.make_ring(0), rig.driver.make_ring(1)]
    rig.give_room(16)
    before = rig.rooms
    rig.driver.add_status(DRIVER_OK)
    rig.driver.look_at_config()

    assert (before, rig.rooms) == (0, 1)


def test_input_waits_until_the_driver_reads_the_size(any_rig: Rig) -> None:
    driver = any_rig.driver
    driver.negotiate()
    driver.rings = [driver.make_ring(0), driver.make_ring(1)]
    driver.add_status(DRIVER_OK)
    any_rig.give_room(16)

    early = any_rig.console.receive(b"in")
    rooms = any_rig.rooms
    driver.look_at_config()

    assert (early, rooms) == (0, 0)
    assert any_rig.rooms == 1
    assert any_rig.console.receive(b"in") == 2
    assert any_rig.timers == []


def test_driver_gets_input_after_a_timeout_without_reading_the_size(rig: Rig) -> None:
    start_without_looking(rig)

    early = rig.console.receive(b"in")
    rig.pass_time()

    assert early == 0
    assert rig.rooms == 1
    assert rig.console.receive(b"in") == 2


def test_wait_for_the_size_is_longer_but_bounded_during_output(rig: Rig) -> None:
    start_without_looking(rig)
    rig.console.receive(b"in")

    waits = 0
    while not rig.rooms:
        rig.send(b"boot log")
        rig.pass_time()
        waits += 1

    assert 2 < waits < 20
    assert rig.timers == []


def start_without_looking(rig: Rig) -> None:
    rig.driver.negotiate()
    rig.driver.rings = [rig.driver.make_ring(0), rig.driver.make_ring(1)]
    rig.driver.add_status(DRIVER_OK)
    rig.give_room(16)


@pytest.mark.parametrize("end", ["reset", "stop"])
def test_reset_and_stop_end_the_wait_for_the_driver(rig: Rig, end: str) -> None:
    start_without_looking(rig)

    rig.driver.reset() if end == "reset" else rig.console.stop()

    assert rig.timers == []


def test_driver_without_the_size_feature_gets_input_at_once(rig: Rig) -> None:
    rig.driver.start(wanted=F_EVENT_IDX)
    rig.give_room(16)

    assert rig.console.receive(b"in") == 2
    assert rig.timers == []


def test_after_calls_back_in_real_time() -> None:
    gone_off = threading.Event()

    cancel = after(0.01, gone_off.set)

    assert gone_off.wait(120)
    cancel()


def test_receive_leaves_input_beyond_the_buffers_and_calls_on_room_once(any_rig: Rig) -> None:
    any_rig.driver.start()
    any_rig.give_room(4)

    taken = any_rig.console.receive(b"012345")
    again = any_rig.console.receive(b"45")
    before = any_rig.rooms
    any_rig.give_room(16)
    any_rig.give_room(16)

    assert (taken, again) == (4, 0)
    assert (before, any_rig.rooms) == (0, 1)


def test_on_room_is_not_called_after_receive_took_all(any_rig: Rig) -> None:
    any_rig.driver.start()
    any_rig.give_room(16)

    any_rig.console.receive(b"x")
    any_rig.give_room(16)

    assert any_rig.rooms == 0


@pytest.mark.parametrize("wanted", [0, F_EVENT_IDX])
def test_buffers_cause_no_kick_when_no_input_waits(rig: Rig, wanted: int) -> None:
    rig.driver.start(wanted=wanted)
    rig.give_room(16, 16, 16)
    rig.console.receive(b"x")

    kicks = []
    for _ in range(20):
        rig.receiveq.add(Buffer(rig.driver.ram.take(16), 16, write=True))
        kicks.append(rig.receiveq.wants_kick())

    assert not any(kicks)


def test_sixteen_mebibytes_are_received(any_rig: Rig) -> None:
    data = random.Random(4).randbytes(16 * MIB)
    got = hashlib.sha256()
    driver = any_rig.driver
    driver.start()
    places = {}
    for _ in range(64):
        address = driver.ram.take(4096)
        places[any_rig.receiveq.add(Buffer(address, 4096, write=True))] = address
    driver.kick_if_wanted(RECEIVEQ)

    at = 0
    while at < len(data):
        at += any_rig.console.receive(data[at : at + 100_000])
        back = any_rig.receiveq.take_used()
        assert back, "a stall"
        for head, length in back:
            got.update(any_rig.memory.read(places[head], length))
        any_rig.receiveq.publish(*[head for head, _ in back])
        driver.kick_if_wanted(RECEIVEQ)

    assert got.digest() == hashlib.sha256(data).digest()


def test_input_is_complete_at_any_speed_of_guest_and_sender(any_rig: Rig) -> None:
    """Run a sender that waits for room and a slow guest in two threads."""
    data = random.Random(5).randbytes(300_000)
    room, got = threading.Event(), bytearray()
    any_rig.console.on_room = room.set
    any_rig.driver.start()
    sender = threading.Thread(target=send_all, args=(any_rig, data, room))

    sender.start()
    address = any_rig.driver.ram.take(64 * 100)
    free = [address + 100 * n for n in range(64)]
    places: dict[int, int] = {}
    while len(got) < len(data):
        while free:
            where = free.pop()
            places[any_rig.receiveq.add(Buffer(where, 100, write=True))] = where
        any_rig.driver.kick_if_wanted(RECEIVEQ)
        for head, length in any_rig.receiveq.take_used():
            got += any_rig.memory.read(places[head], length)
            free.append(places[head])
    sender.join(120)

    assert got == data


def send_all(rig: Rig, data: bytes, room: threading.Event) -> None:
    at = 0
    while at < len(data):
        room.clear()
        taken = rig.console.receive(data[at : at + 4096])
        at += taken
        if not taken:
            assert room.wait(120), f"no room was announced at {at}"


# Size and emergency write


def test_console_offers_size_and_emergency_write(any_rig: Rig) -> None:
    assert any_rig.driver.offered() & 0xFF == F_SIZE | F_EMERG_WRITE


def test_resize_changes_the_configuration_and_interrupts(any_rig: Rig) -> None:
    any_rig.console.resize(80, 25)
    any_rig.driver.start()
    before = any_rig.interrupts

    any_rig.console.resize(132, 43)
    any_rig.console.resize(132, 43)

    assert any_rig.interrupts == before + 1
    assert any_rig.driver.acknowledge() == CONFIG
    assert any_rig.mmio.mmio_read(0x100, 2) == 132
    assert any_rig.mmio.mmio_read(0x102, 2) == 43
    assert any_rig.mmio.mmio_read(0x100, 4) == 132 | 43 << 16


def test_resize_does_not_interrupt_before_driver_ok(rig: Rig) -> None:
    generation = rig.driver.read(0x0FC)

    rig.console.resize(80, 25)

    assert rig.interrupts == 0
    assert rig.driver.read(0x0FC) != generation


def test_driver_ok_signals_the_size(rig: Rig) -> None:
    rig.console.resize(80, 25)

    start_without_looking(rig)

    assert rig.driver.acknowledge() & CONFIG


def test_driver_cannot_change_the_size(rig: Rig) -> None:
    rig.console.resize(80, 25)

    rig.mmio.mmio_write(0x100, 4, 0)

    assert rig.mmio.mmio_read(0x100, 2) == 80


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_emergency_write_works_before_initialisation(any_rig: Rig, length: int) -> None:
    any_rig.mmio.mmio_write(0x108, length, 0x41)

    assert any_rig.sent == b"A"


def test_emergency_write_works_after_a_failure(rig: Rig) -> None:
    rig.driver.start()
    rig.transmitq.raw(0, 0, 1, 0)
    rig.transmitq.publish(0)
    rig.driver.kick(TRANSMITQ)

    rig.mmio.mmio_write(0x108, 4, 0x41)

    assert rig.sent == b"A"


# Invalid buffers


@pytest.mark.parametrize(
    ("queue", "write"), [(RECEIVEQ, False), (TRANSMITQ, True)], ids=["receiveq", "transmitq"]
)
def test_buffer_of_the_wrong_direction_stops_the_device(rig: Rig, queue: int, write: bool) -> None:
    rig.driver.start()
    rig.driver.rings[queue].add(Buffer(rig.driver.ram.take(4), 4, write=write))

    rig.driver.kick(queue)
    rig.console.receive(b"x")

    assert rig.driver.status & NEEDS_RESET
    assert len(rig.lines) == 1
    assert rig.sent == b""


def test_buffer_for_input_without_room_stops_the_device(rig: Rig) -> None:
    rig.driver.start()
    rig.receiveq.add(Buffer(0, 0, write=True))

    taken = rig.console.receive(b"x")

    assert taken == 0
    assert rig.driver.status & NEEDS_RESET
    assert len(rig.lines) == 1
