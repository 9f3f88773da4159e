"""The socket device with the kernel's vhost-vsock, and a driver in Python: no guest runs."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from pyvmm.config import VHOST_VSOCK
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.vsock import VhostVsock, VirtioVsock
from pyvmm.errors import HostError
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import DRIVER_OK, F_EVENT_IDX, NEEDS_RESET, Buffer, Driver
from tests.devices.virtio.rig import ENOUGH_S

RX, TX, EVENT = range(3)
HEADER = struct.Struct("<QQIIIHHIII")  # struct virtio_vsock_hdr
HOST = 2
STREAM = 1
REQUEST, RESPONSE, RW = 1, 2, 5  # enum virtio_vsock_op
PORT = 4321
CREDIT = 1 << 16
ROOM = 4096

pytestmark = pytest.mark.kvm  # the emulated host has /dev/vhost-vsock


class Peer:
    """The guest's side of one connection."""

    def __init__(self, memory: GuestMemory, cid: int) -> None:
        self.cid = cid
        self.lines: list[str] = []
        self.device = VirtioVsock(memory, self.lines.append, VhostVsock(cid, VHOST_VSOCK), cid)
        self.device.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.interrupts = 0
        self.mmio = VirtioMmio(self.device, self._interrupt)
        self.driver = Driver(self.mmio, memory)
        self.places: dict[tuple[int, int], int] = {}  # of buffers, by queue and head
        self.arrived: list[int] = []  # heads of buffers with packets
        self.port = 0

    def _interrupt(self) -> None:
        self.interrupts += 1

    def start(self) -> None:
        self.driver.negotiate(~F_EVENT_IDX)  # an interrupt for each buffer
        self.driver.rings = [self.driver.make_ring(index) for index in range(3)]
        for queue in (RX, EVENT):
            for _ in range(8):
                self.offer(queue, self.driver.ram.take(ROOM))
        self.driver.add_status(DRIVER_OK)

    def offer(self, queue: int, address: int) -> None:
        """Make a buffer available."""
        head = self.driver.rings[queue].add(Buffer(address, ROOM, write=True))
        self.places[queue, head] = address

    def send(self, op: int, data: bytes = b"") -> None:
        numbers = (self.cid, HOST, PORT, self.port, len(data), STREAM, op, 0, CREDIT, 0)
        packet = HEADER.pack(*numbers) + data
        self.driver.rings[TX].add(Buffer(self.driver.ram.put(packet), len(packet)))
        self.kick(TX)

    def kick(self, queue: int) -> None:
        self.driver.write(0x050, queue)

    def receive(self) -> tuple[int, bytes]:
        """Wait for a packet; return its operation and its data."""
        while not self._has_packets():
            ready, _, _ = select.select([self.device.call_fd], [], [], ENOUGH_S)
            assert ready, "no interrupt"
            os.eventfd_read(self.device.call_fd)
        address = self.places[RX, self.arrived.pop(0)]
        packet = self.driver.ram.memory.read(address, ROOM)
        source, target, port, local, length, _, op, *_ = HEADER.unpack_from(packet)
        assert (source, target, local) == (HOST, self.cid, PORT)
        self.port = port
        self.offer(RX, address)
        self.kick(RX)
        return op, packet[HEADER.size : HEADER.size + length]

    def _has_packets(self) -> bool:
        self.arrived += [head for head, _ in self.driver.rings[RX].take_used()]
        return bool(self.arrived)

    def accept(self) -> socket.socket:
        """Connect the host to the guest."""
        host = socket.socket(socket.AF_VSOCK)
        host.setblocking(False)
        host.connect_ex((self.cid, PORT))
        assert self.receive() == (REQUEST, b"")
        self.send(RESPONSE)
        _, ready, _ = select.select([], [host], [], ENOUGH_S)
        assert ready
        assert host.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        host.settimeout(ENOUGH_S)
        return host

    def close(self) -> None:
        self.device.stop()
        os.close(self.device.call_fd)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, 4 * MIB) as made:
        yield made


@pytest.fixture
def cid() -> int:
    """Return a CID that no test at the same time has."""
    return random.randrange(1 << 16, 1 << 31)


@pytest.fixture
def peer(memory: GuestMemory, cid: int) -> Iterator[Peer]:
    made = Peer(memory, cid)
    yield made
    made.close()


def test_bytes_travel_both_ways(peer: Peer) -> None:
    peer.start()
    assert peer.mmio.mmio_read(0x100, 8) == peer.cid
    with peer.accept() as host:
        host.sendall(b"from the host")
        assert peer.receive() == (RW, b"from the host")

        peer.send(RW, b"from the guest")
        assert host.recv(100) == b"from the guest"

    assert peer.receive()[0] != RW  # the host shuts the connection down
    assert peer.lines == []


def test_nothing_changes_in_a_paused_guest_and_nothing_is_lost(peer: Peer) -> None:
    peer.start()
    with peer.accept() as host:
        peer.device.drain()
        before = peer.driver.ram.memory.read(RAM_BASE, 4 * MIB)
        host.sendall(b"while paused")
        assert peer.driver.ram.memory.read(RAM_BASE, 4 * MIB) == before

        peer.device.proceed()

        assert peer.receive() == (RW, b"while paused")


def test_restored_driver_is_told_that_its_connections_are_gone(
    memory: GuestMemory, cid: int
) -> None:
    saved = Peer(memory, cid)
    saved.start()
    saved.device.drain()
    state = saved.mmio.state()
    saved.close()

    restored = Peer(memory, cid)
    restored.driver, restored.places = saved.driver, saved.places
    restored.driver.mmio = restored.mmio
    restored.mmio.restore(state, "state")
    restored.mmio.resume()

    ((head, written),) = restored.driver.rings[EVENT].take_used()
    assert memory.read(restored.places[EVENT, head], written) == bytes(4)  # TRANSPORT_RESET
    assert restored.interrupts
    restored.accept().close()
    restored.close()


def test_ring_that_breaks_the_rules_stops_the_device(peer: Peer) -> None:
    peer.start()
    ((fd, handler),) = peer.device.watched().items()
    ring = peer.driver.rings[TX]
    peer.driver.ram.write(ring.avail + 2, "<H", 1000)  # more chains than the ring has entries
    peer.kick(TX)

    assert select.select([fd], [], [], ENOUGH_S)[0]
    handler()

    assert peer.driver.status & NEEDS_RESET
    assert "breaks the rules" in peer.lines[0]


def test_cid_of_another_guest_is_refused(peer: Peer) -> None:
    with pytest.raises(HostError, match="Address already in use") as caught:
        VhostVsock(peer.cid, VHOST_VSOCK)

    assert f"`devices.vsock`={peer.cid}" in caught.value.message
    assert "choose another" in (caught.value.hint or "")
