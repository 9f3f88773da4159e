"""The vhost-user front end: with Debian's virtiofsd, and with daemons that break the protocol."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.devices.vhost import user
from pyvmm.devices.vhost.user import HEADER, REQUESTS, VhostUser
from pyvmm.devices.virtio.fs import VirtioFs
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.errors import HostError, VmmError
from pyvmm.host.parts import tools
from pyvmm.host.progress import Progress
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.map import regions
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import DRIVER_OK, F_EVENT_IDX, Buffer, Driver
from tests.devices.virtio.rig import ENOUGH_S

HIPRIO, REQUEST = range(2)
# linux/fuse.h
IN = struct.Struct("<IIQQIIIHH")  # struct fuse_in_header
OUT = struct.Struct("<IiQ")  # struct fuse_out_header
LOOKUP, OPEN, READ, INIT = 1, 14, 15, 26
ROOT_ID = 1
ROOM = 8192
ANSWER = "an answer of the host\n" * 100


@pytest.fixture(scope="module")
def virtiofsd() -> tuple[str, ...]:
    return tools.virtiofsd(Progress(quiet=True)).command


@contextlib.contextmanager
def daemon(command: tuple[str, ...], directory: Path) -> Iterator[socket.socket]:
    """Run virtiofsd for a directory; yield a connection to it."""
    with socket.socket(socket.AF_UNIX) as listener:
        path = directory.with_suffix(".sock")
        listener.bind(str(path))
        listener.listen(1)
        words = ["--fd", str(listener.fileno()), "--shared-dir", str(directory), "--sandbox=none"]
        command = (*command, *words, "--seccomp=none")
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.PIPE)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
    try:
        yield connection
    finally:
        connection.close()
        process.kill()
        process.communicate()


class Guest:
    """A driver that speaks FUSE."""

    def __init__(self, memory: GuestMemory, connection: socket.socket) -> None:
        self.lines: list[str] = []
        self.errors: list[VmmError] = []
        backend = VhostUser(connection, "virtiofsd")
        self.device = VirtioFs(memory, self.lines.append, backend, "tag", self.errors.append)
        self.device.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.mmio = VirtioMmio(self.device, lambda: None)
        self.driver = Driver(self.mmio, memory)
        self.unique = 0

    def start(self) -> None:
        self.driver.negotiate(~F_EVENT_IDX)  # an interrupt for each buffer
        self.driver.rings = [self.driver.make_ring(index) for index in range(2)]
        self.driver.add_status(DRIVER_OK)

    def send(self, opcode: int, node: int, body: bytes) -> int:
        """Send a request; return the address of its reply."""
        self.unique += 2
        size = IN.size + len(body)
        request = IN.pack(size, opcode, self.unique, node, 0, 0, 0, 0, 0) + body
        at, reply = self.driver.ram.put(request), self.driver.ram.take(ROOM)
        self.driver.rings[REQUEST].add(Buffer(at, size), Buffer(reply, ROOM, write=True))
        self.driver.write(0x050, REQUEST)
        return reply

    def reply(self, at: int) -> bytes:
        """Wait for the one request in flight; return its reply's body."""
        ring = self.driver.rings[REQUEST]
        while not ring.take_used():
            assert select.select([self.device.call_fd], [], [], ENOUGH_S)[0], "no interrupt"
            os.eventfd_read(self.device.call_fd)
        length, error, unique = OUT.unpack(self.driver.ram.memory.read(at, OUT.size))
        assert (error, unique) == (0, self.unique)
        return self.driver.ram.memory.read(at + OUT.size, length - OUT.size)

    def ask(self, opcode: int, node: int, body: bytes) -> bytes:
        return self.reply(self.send(opcode, node, body))

    def close(self) -> None:
        self.device.stop()
        os.close(self.device.call_fd)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "file").write_text(ANSWER)
    return directory


@pytest.fixture
def guest(virtiofsd: tuple[str, ...], shared: Path) -> Iterator[Guest]:
    with (
        daemon(virtiofsd, shared) as connection,
        GuestMemory(RAM_BASE, 4 * MIB, shared=True) as memory,
    ):
        made = Guest(memory, connection)
        yield made
        made.close()


def read_the_file(guest: Guest) -> bytes:
    entry = guest.ask(LOOKUP, ROOT_ID, b"file\0")
    (node,) = struct.unpack_from("<Q", entry)
    (handle,) = struct.unpack_from("<Q", guest.ask(OPEN, node, struct.pack("<II", 0, 0)))
    return guest.ask(READ, node, struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0))


def initialise(guest: Guest) -> None:
    major, minor = struct.unpack_from("<II", guest.ask(INIT, 0, struct.pack("<IIII", 7, 31, 0, 0)))
    assert major == 7
    assert minor >= 27


def test_guest_reads_a_file_of_the_directory(guest: Guest) -> None:
    assert guest.mmio.mmio_read(0x100, 4) == int.from_bytes(b"tag\0", "little")
    assert guest.mmio.mmio_read(0x124, 4) == 1
    guest.start()

    initialise(guest)

    assert read_the_file(guest) == ANSWER.encode()
    assert guest.lines == []


def test_daemon_serves_the_queue_again_after_a_pause(guest: Guest) -> None:
    guest.start()
    initialise(guest)
    guest.device.drain()
    states = [queue.state() for queue in guest.device.queues]
    assert states[REQUEST]["last_avail"] == states[REQUEST]["used_idx"] == 1

    at = guest.send(LOOKUP, ROOT_ID, b"file\0")
    assert guest.driver.rings[REQUEST].take_used() == []
    guest.device.proceed()

    assert guest.reply(at)
    assert read_the_file(guest) == ANSWER.encode()


class Liar:
    """A daemon that answers with given bytes; None: it closes the connection."""

    def __init__(self, answer: Callable[[int], bytes | None]) -> None:
        self.front, self._back = socket.socketpair(socket.AF_UNIX)
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._back, contextlib.suppress(OSError):
            while head := self._back.recv(HEADER.size):
                request, _, size = HEADER.unpack(head)
                if size:
                    self._back.recv(size)
                answer = self._answer(request)
                if answer is None:
                    return
                self._back.sendall(answer)

    def close(self) -> None:
        self.front.close()
        self._thread.join()


def reply(name: str, payload: bytes, flags: int = user.VERSION | user.REPLY) -> bytes:
    return HEADER.pack(REQUESTS[name], flags, len(payload)) + payload


GOOD = reply("GET_FEATURES", bytes(8))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "daemon has ended at GET_FEATURES"),
        (GOOD[:5], "does not answer GET_FEATURES within"),
        (b"", "does not answer GET_FEATURES within"),
        (reply("GET_VRING_BASE", bytes(8)), "answers GET_FEATURES with something else"),
        (reply("GET_FEATURES", bytes(8), user.VERSION), "with something else"),
        (reply("GET_FEATURES", bytes(8), 2 | user.REPLY), "with something else"),
        (reply("GET_FEATURES", bytes(4)), "with 4 bytes, not 8"),
        (HEADER.pack(1, user.VERSION | user.REPLY, 0xFFFF_FFFF), "with 4294967295 bytes, not 8"),
    ],
)
def test_daemon_that_breaks_the_protocol_is_refused(
    answer: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user, "PATIENCE_S", 0.2)
    liar = Liar(lambda _: answer)

    with pytest.raises(HostError, match=words):
        VhostUser(liar.front, "daemon")

    liar.close()


def test_memory_that_is_not_shared_is_refused() -> None:
    liar = Liar(lambda _: GOOD)
    backend = VhostUser(liar.front, "daemon")

    with GuestMemory(RAM_BASE, MIB) as memory, pytest.raises(HostError, match="is not shared"):
        backend.start(0, regions(memory), {})

    liar.close()
