"""Pseudo-terminals and their carrier: readers that open, close and stall, and the end."""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import stat
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.terminal import pty as ptys
from pyvmm.terminal.pty import SIZE, TYPED, Carrier, Pty, Records, record
from tests.host.conftest import wait_for

MIB = 1 << 20
ENOUGH_S = 120.0


class Line:
    """A carrier between a pty and a guest's socket."""

    def __init__(self) -> None:
        far, self.guest = socket.socketpair()
        self.guest.settimeout(ENOUGH_S)
        self.pty = Pty()
        self.path = self.pty.path
        self.carrier = Carrier(self.pty, far).start()
        self.records = Records()
        self.sizes: list[tuple[int, int]] = []
        self.records.on_size = lambda columns, rows: self.sizes.append((columns, rows))

    def open(self) -> int:
        """Open the terminal, as a program does."""
        return os.open(self.path, os.O_RDWR | os.O_NOCTTY)

    def typed(self, size: int) -> bytes:
        """Read that many bytes of the guest's input."""
        got = b""
        while len(got) < size:
            got += self.records.feed(self.guest.recv(4096))
        return got

    def is_taken(self) -> bool:
        """Return whether the carrier has read the guest's output."""
        return not struct.unpack("i", fcntl.ioctl(self.guest, termios.TIOCOUTQ, bytes(4)))[0]


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    with made.carrier, made.guest:
        yield made


def show(fd: int, size: int) -> bytes:
    """Read that many bytes of a terminal."""
    got = b""
    while len(got) < size:
        assert select.select([fd], [], [], ENOUGH_S)[0], f"nothing comes after {got!r}"
        data = os.read(fd, size - len(got))
        assert data, f"it hung up after {len(got)} bytes of {size}"
        got += data
    return got


def rest(fd: int) -> bytes:
    """Read a terminal until it hangs up."""
    got = b""
    while True:
        try:
            data = os.read(fd, 1 << 16)
        except OSError:  # EIO
            return got
        if not data:
            return got
        got += data


def descriptors() -> set[str]:
    """Return this process's open descriptors."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_pty_is_raw_without_echo_and_private(line: Line) -> None:
    terminal = line.open()

    mode = termios.tcgetattr(terminal)

    assert not mode[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert not mode[1] & termios.OPOST
    assert stat.S_IMODE(Path(line.path).stat().st_mode) == 0o600
    os.close(terminal)


def test_every_byte_is_carried_both_ways(line: Line) -> None:
    every = bytes(range(256))
    terminal = line.open()

    line.guest.sendall(every)
    os.write(terminal, every)

    assert show(terminal, 256) == every
    assert line.typed(256) == every
    os.close(terminal)


def test_output_is_dropped_while_the_pty_is_closed(line: Line) -> None:
    line.guest.sendall(bytes(MIB))
    wait_for(line.is_taken)

    terminal = line.open()  # the last bytes may still be dropped
    line.guest.sendall(b"now")
    shown = b""
    while not shown.endswith(b"now"):
        shown += show(terminal, 1)

    assert len(shown) < MIB // 10
    os.close(terminal)


def test_pty_can_be_reopened(line: Line) -> None:
    for number in range(20):
        terminal = line.open()
        line.guest.sendall(b"out %02d" % number)
        os.write(terminal, b"in %02d" % number)

        assert show(terminal, 6) == b"out %02d" % number
        assert line.typed(5) == b"in %02d" % number
        os.close(terminal)


def test_input_arrives_when_the_pty_is_closed_at_once(line: Line) -> None:
    for number in range(20):
        terminal = line.open()
        os.write(terminal, b"%02d" % number)
        os.close(terminal)

    assert line.typed(40) == b"".join(b"%02d" % number for number in range(20))


def test_output_continues_when_one_of_two_readers_closes(line: Line) -> None:
    first, second = line.open(), line.open()

    os.close(first)
    line.guest.sendall(b"still here")

    assert show(second, 10) == b"still here"
    os.close(second)


def test_stalled_reader_loses_nothing_and_blocks_the_guest(line: Line) -> None:
    data = random.Random(3).randbytes(MIB)
    terminal = line.open()
    sender = threading.Thread(target=line.guest.sendall, args=(data,))

    sender.start()
    got = show(terminal, 100)
    sender.join(0.5)
    stalled = sender.is_alive()
    while len(got) < MIB:
        got += show(terminal, min(200_000, MIB - len(got)))
        time.sleep(0.05)
    sender.join()

    assert stalled
    assert got == data
    os.close(terminal)


def test_stalled_guest_loses_nothing_and_blocks_the_writer(line: Line) -> None:
    data = random.Random(4).randbytes(MIB)
    terminal = line.open()
    typist = threading.Thread(target=lambda: [os.write(terminal, data[i : i + 4096])
                                              for i in range(0, MIB, 4096)])  # fmt: skip

    typist.start()
    typist.join(0.5)
    stalled = typist.is_alive()
    line.guest.sendall(b"goes on meanwhile")
    shown = show(terminal, 17)
    got = line.typed(MIB)
    typist.join()

    assert stalled
    assert shown == b"goes on meanwhile"
    assert got == data
    os.close(terminal)


def test_reader_that_closes_unblocks_the_guest(line: Line) -> None:
    terminal = line.open()
    sender = threading.Thread(target=line.guest.sendall, args=(bytes(MIB),))
    sender.start()
    sender.join(0.3)
    assert sender.is_alive()

    os.close(terminal)
    sender.join(ENOUGH_S)

    assert not sender.is_alive()


def test_size_is_sent_with_input_and_at_close(line: Line) -> None:
    terminal = line.open()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    os.write(terminal, b"x")
    line.typed(1)
    sizes = list(line.sizes)

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.close(terminal)
    line.records.feed(line.guest.recv(4096))

    assert sizes == [(132, 50)]
    assert line.sizes == [(132, 50), (80, 24)]


def test_close_hangs_up_after_the_reader_has_read_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ptys, "GRACE_S", 3600.0)  # the reader may be slow
    data = random.Random(5).randbytes(50_000)
    line = Line()
    terminal = line.open()
    line.guest.sendall(data)
    line.guest.close()
    closing = threading.Thread(target=line.carrier.close)

    closing.start()
    closing.join(0.3)
    waits = closing.is_alive()
    got = rest(terminal)
    closing.join()

    assert waits
    assert got == data
    os.close(terminal)


def test_close_does_not_wait_for_a_stalled_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptys, "GRACE_S", 0.2)
    line = Line()
    terminal = line.open()
    sender = threading.Thread(target=_send_until_broken, args=(line.guest, bytes(MIB)))
    sender.start()

    line.carrier.close()  # the guest's end is still open, and full
    sender.join(ENOUGH_S)

    assert not sender.is_alive()
    os.close(terminal)


def _send_until_broken(guest: socket.socket, data: bytes) -> None:
    try:
        guest.sendall(data)
    except OSError:
        guest.close()


def test_close_does_not_wait_without_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptys, "GRACE_S", 3600.0)
    line = Line()

    line.carrier.close()

    assert line.guest.recv(1) == b""
    line.guest.close()


def test_close_leaves_no_descriptor_open() -> None:
    before = descriptors()

    line = Line()
    line.guest.close()
    line.carrier.close()

    assert descriptors() == before


@given(
    st.lists(
        st.one_of(st.binary(max_size=30), st.tuples(st.integers(0, 65535), st.integers(0, 9)))
    ),
    st.data(),
)
def test_records_are_decoded_from_any_pieces(
    sent: list[bytes | tuple[int, int]], data: st.DataObject
) -> None:
    stream = b"".join(
        record(TYPED, item) if isinstance(item, bytes) else record(SIZE, struct.pack("<HH", *item))
        for item in sent
    )
    sizes: list[tuple[int, int]] = []
    records = Records()
    records.on_size = lambda columns, rows: sizes.append((rows, columns))

    typed = b""
    while stream:
        piece = data.draw(st.integers(1, len(stream)))
        typed += records.feed(stream[:piece])
        stream = stream[piece:]

    assert typed == b"".join(item for item in sent if isinstance(item, bytes))
    assert sizes == [item for item in sent if isinstance(item, tuple)]
