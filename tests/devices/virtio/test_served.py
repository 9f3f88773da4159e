"""Requests served by threads: overlap, waits, and drops at a reset."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pyvmm.devices.virtio import served
from pyvmm.devices.virtio.device import INT_CONFIG, INT_VRING, QueueSpec
from pyvmm.devices.virtio.queue import QueueError
from pyvmm.devices.virtio.served import OVERLAP, Job, ServedDevice
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import NEEDS_RESET, Buffer
from tests.devices.virtio.rig import ENOUGH_S, DeviceRig

SLOW = 8  # the first byte of a request that steps back
WAITS = 7  # the first byte of a request that waits, in `begin_rush`
FOREVER_NS = 1 << 62


class Gated(ServedDevice):
    """A device that serves a request once the gate named by its first byte is open."""

    device_id = 99
    name = "gated"
    queue_specs = (QueueSpec("q0", 16), QueueSpec("q1", 16))
    threads = 3

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gates = {number: threading.Event() for number in range(16)}
        self.entered = threading.Semaphore(0)
        self.served: list[int] = []

    def serve(self, job: Job) -> int:
        number = job.chain.read()[0]
        if number >= SLOW:
            self.step_back(job)
        self.entered.release()
        if number == 255:
            raise QueueError("asks for what is not")
        assert self.gates[number].wait(ENOUGH_S)
        self.served.append(number)
        return job.chain.write(b"%d" % number)


Rig = DeviceRig[Gated]


@pytest.fixture(params=["modern", "legacy"])
def rig(memory: GuestMemory, request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(memory, Gated, legacy=request.param == "legacy")
    made.driver.start()
    yield made
    for gate in made.device.gates.values():
        gate.set()
    made.device.stop()


def ask(rig: Rig, *numbers: int, queue: int = 0) -> list[int]:
    """Submit requests with one kick; return their heads."""
    ram, ring = rig.driver.ram, rig.driver.rings[queue]
    heads = [
        ring.add(Buffer(ram.put(bytes([number])), 1), Buffer(ram.take(16), 16, True))
        for number in numbers
    ]
    rig.driver.kick_if_wanted(queue)
    return heads


def wait_until_in_flight(rig: Rig, count: int) -> None:
    for _ in range(count):
        assert rig.device.entered.acquire(timeout=ENOUGH_S)


def one_by_one(rig: Rig, *numbers: int) -> None:
    """Serve requests of which WAITS waits."""
    gate = rig.device.gates[WAITS]
    for number in numbers:
        gate.clear()
        ask(rig, number)
        wait_until_in_flight(rig, 1)
        time.sleep(100 * served.WAITED_NS / 1e9)
        gate.set()
        rig.collect()


def begin_rush(rig: Rig) -> None:
    """Make requests wait, so that the following ones overlap."""
    one_by_one(rig, WAITS, WAITS)
    rig.device.served.clear()


@pytest.fixture
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no wait, however long the host preempts a thread."""
    monkeypatch.setattr(served, "WAITED_NS", FOREVER_NS)


@pytest.mark.usefixtures("nothing_waits")
def test_requests_without_waits_share_a_thread_and_an_interrupt(rig: Rig) -> None:
    for gate in rig.device.gates.values():
        gate.set()

    ask(rig, 1, 2, 3, 4)
    rig.collect(4)
    rig.device.drain()

    assert rig.device.served == [1, 2, 3, 4]
    assert len(threads()) == 1
    assert rig.interrupts == 1


def test_request_that_waited_interrupts_before_the_next(rig: Rig) -> None:
    first, _ = ask(rig, 1, 2)
    wait_until_in_flight(rig, 1)
    time.sleep(100 * served.WAITED_NS / 1e9)
    rig.device.gates[1].set()

    assert list(rig.collect()) == [first]
    wait_until_in_flight(rig, 1)
    assert rig.interrupts == 1


def test_requests_overlap_when_some_of_them_wait(rig: Rig) -> None:
    for gate in rig.device.gates.values():
        gate.set()
    one_by_one(rig, WAITS, 1, 2, WAITS)
    for number in (3, 4):
        rig.device.gates[number].clear()

    ask(rig, 3, 4)

    wait_until_in_flight(rig, 2)


def test_completed_requests_interrupt_before_an_invalid_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(served, "WAITED_NS", FOREVER_NS)
    monkeypatch.setattr(rig.device, "interrupt", told.append)
    for gate in rig.device.gates.values():
        gate.set()

    ask(rig, 1, 2, 255)
    rig.device.drain()

    assert told == [INT_VRING, INT_CONFIG]
    assert len(rig.driver.rings[0].take_used()) == 2


def test_slow_request_does_not_delay_earlier_interrupts(rig: Rig) -> None:
    rig.device.gates[1].set()

    (first, _) = ask(rig, 1, SLOW)

    assert list(rig.collect()) == [first]
    wait_until_in_flight(rig, 2)
    assert rig.interrupts == 1


def test_requests_are_in_flight_together_and_end_in_any_order(rig: Rig) -> None:
    begin_rush(rig)
    first, second, third = ask(rig, 1, 2, 3)
    wait_until_in_flight(rig, 3)

    for number, head in ((2, second), (3, third), (1, first)):
        rig.device.gates[number].set()
        assert list(rig.collect()) == [head]


def test_requests_in_flight_are_at_most_the_threads(rig: Rig) -> None:
    begin_rush(rig)
    ask(rig, *range(5))
    wait_until_in_flight(rig, 3)

    assert not rig.device.entered.acquire(timeout=0.05)
    rig.device.gates[1].set()

    assert rig.collect()
    wait_until_in_flight(rig, 1)


def test_slow_request_does_not_delay_the_next(rig: Rig) -> None:
    ask(rig, SLOW)
    wait_until_in_flight(rig, 1)
    ask(rig, 1)
    rig.device.gates[1].set()

    assert rig.collect()
    assert rig.device.served == [1]


@pytest.mark.usefixtures("nothing_waits")
def test_requests_one_at_a_time_are_served_by_one_thread(rig: Rig) -> None:
    for gate in rig.device.gates.values():
        gate.set()

    for _ in range(100):
        ask(rig, 1)
        rig.collect()

    assert len(threads()) == 1


def test_extra_threads_wait_for_the_next_burst(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_rush(rig)
    monkeypatch.setattr(served, "WAITED_NS", FOREVER_NS)
    for gate in rig.device.gates.values():
        gate.set()
    ask(rig, 1, 2, 3)
    rig.collect(3)

    for _ in range(2 * OVERLAP):
        ask(rig, 1)
        rig.collect()
    rig.device.gates[1].clear()
    ask(rig, 1)
    wait_until_in_flight(rig, 3 + 2 * OVERLAP + 1)
    ask(rig, 2)

    assert not rig.device.entered.acquire(timeout=0.05)
    rig.device.gates[1].set()
    rig.collect(2)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gated")]


def test_all_queues_are_served(rig: Rig) -> None:
    begin_rush(rig)
    ask(rig, *range(7), queue=0)
    wait_until_in_flight(rig, 3)
    ask(rig, 9, queue=1)
    for gate in rig.device.gates.values():
        gate.set()

    rig.collect(queue=1)

    assert rig.device.served.index(9) < 7


def test_drain_waits_for_all_requests(rig: Rig) -> None:
    ask(rig, *range(6))
    drained = threading.Event()

    def drain() -> None:
        rig.device.drain()
        drained.set()

    waiter = threading.Thread(target=drain)
    waiter.start()

    for number in range(5):
        rig.device.gates[number].set()
    assert not drained.wait(0.05)
    rig.device.gates[5].set()
    waiter.join(ENOUGH_S)

    assert drained.is_set()
    assert len(rig.device.served) == 6
    assert len(rig.driver.rings[0].take_used()) == 6


def test_reset_waits_for_requests_in_flight_and_drops_them(rig: Rig) -> None:
    ask(rig, 1)
    wait_until_in_flight(rig, 1)
    ring = rig.driver.rings[0]
    resetting = threading.Thread(target=rig.driver.reset)
    resetting.start()
    resetting.join(0.05)
    assert resetting.is_alive()

    rig.device.gates[1].set()
    resetting.join(ENOUGH_S)

    assert not resetting.is_alive()
    assert ring.take_used() == []
    rig.driver.start()
    rig.device.gates[2].set()
    ask(rig, 2)
    assert rig.collect()


def test_stop_waits_for_requests_and_releases_guest_ram(memory: GuestMemory) -> None:
    rig = Rig(memory, Gated)
    rig.driver.start()
    begin_rush(rig)
    ask(rig, *range(4))
    wait_until_in_flight(rig, 3)
    stopping = threading.Thread(target=rig.device.stop)
    stopping.start()

    for gate in rig.device.gates.values():
        gate.set()
    stopping.join(ENOUGH_S)

    assert not stopping.is_alive()
    memory.close()  # raises BufferError if a view is left


def test_invalid_request_stops_the_device_until_a_reset(rig: Rig) -> None:
    begin_rush(rig)
    ask(rig, 1, 255)
    wait_until_in_flight(rig, 2)
    rig.device.gates[1].set()
    rig.device.drain()

    assert rig.driver.status & NEEDS_RESET
    assert rig.lines == [
        "gated: the guest's driver is broken, its device stops: asks for what is not"
    ]
    rig.driver.start()
    ask(rig, 1)
    assert rig.collect()


def test_requests_are_served_in_sequence_without_threads(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gate in rig.device.gates.values():
        gate.set()
    begin_rush(rig)  # by the first thread

    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    ask(rig, 1, 2, SLOW)

    rig.collect(3)
    assert "can't start new thread" in rig.lines[0]


def test_bug_in_serve_ends_a_thread_but_not_the_device(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = rig.device.serve
    threads: list[threading.Thread] = []
    reported: list[str] = []

    def broken(job: Job) -> int:
        threads.append(threading.current_thread())
        raise ValueError("a bug")

    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(str(args.exc_value)))
    monkeypatch.setattr(rig.device, "serve", broken)
    ask(rig, 1)
    rig.collect()
    monkeypatch.setattr(rig.device, "serve", serve)
    rig.device.gates[1].set()
    ask(rig, 1)

    assert list(rig.collect().values()) == [1]
    threads[0].join(ENOUGH_S)  # it raises after the next thread has started
    assert reported == ["a bug"]


def test_thousands_of_requests_all_return_once(rig: Rig) -> None:
    for gate in rig.device.gates.values():
        gate.set()
    ram = rig.driver.ram
    source, sink = Buffer(ram.put(b"\5"), 1), Buffer(ram.take(16), 16, True)
    done = 0

    for round_ in range(200):
        batch = 1 + round_ % 8
        for _ in range(batch):
            rig.driver.rings[0].add(source, sink)
        rig.driver.kick_if_wanted(0)
        used = 0
        while used < batch:
            used += len(rig.driver.rings[0].take_used())
        done += used

    assert done == len(rig.device.served)
    assert rig.driver.rings[0].take_used() == []
