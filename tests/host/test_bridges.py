"""A guest's terminals as ptys of this machine, through both halves of the channel."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.conftest import ENOUGH_S, Channel, wait_for
from tests.host.inside.test_session import is_alive
from tests.terminal.test_pty import rest, show

GUEST = Path(__file__).with_name("guest.py")
EOT = b"\x04"
MIB = 1 << 20


class Echoing:
    """Run a command whose guest's terminals echo; open those terminals."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdout
        inner, *self.paths = process.stdout.readline().decode().split()
        self.inner = int(inner)
        self.terminals = [os.open(path, os.O_RDWR | os.O_NOCTTY) for path in self.paths]

    def close(self) -> None:
        """End it, however it was left."""
        for terminal in self.terminals:
            os.close(terminal)
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def echoing(channel: Channel, *numbers: int) -> Iterator[Echoing]:
    words = [str(number) for number in numbers]
    process = channel.start(
        sys.executable, str(GUEST), *words, env={**os.environ, "TTYS": " ".join(words)}
    )
    made = Echoing(process)
    try:
        yield made
    finally:
        made.close()


def test_bridge_carries_bytes_both_ways(channel: Channel) -> None:
    with echoing(channel, 1) as guest:
        os.write(guest.terminals[0], b"over and back")

        assert show(guest.terminals[0], 13) == b"over and back"


def test_bridge_returns_the_commands_exit_code_and_hangs_up_the_pty(channel: Channel) -> None:
    with echoing(channel, 2) as guest:
        os.write(guest.terminals[0], b"last words" + EOT)

        assert rest(guest.terminals[0]) == b"last words" + EOT
        assert guest.process.wait(ENOUGH_S) == 7


def test_unread_pty_does_not_block_another(channel: Channel) -> None:
    data = random.Random(9).randbytes(100_000).replace(EOT, b"")
    with echoing(channel, 0, 3) as guest:
        stalled, other = guest.terminals
        type_all(stalled, data)

        os.write(other, b"free")

        assert show(other, 4) == b"free"
        assert show(stalled, len(data)) == data


def test_bridge_loses_nothing_when_the_reader_stalls(channel: Channel) -> None:
    data = random.Random(10).randbytes(MIB).replace(EOT, b"")
    with echoing(channel, 1) as guest:
        (terminal,) = guest.terminals
        typing = threading.Thread(target=type_all, args=(terminal, data))
        typing.start()

        shown = b""
        while len(shown) < len(data):
            shown += show(terminal, min(MIB // 4, len(data) - len(shown)))
            time.sleep(0.3)
        typing.join()

    assert shown == data


def test_closed_pty_does_not_block_the_command(channel: Channel) -> None:
    data = random.Random(11).randbytes(200_000).replace(EOT, b"")
    with echoing(channel, 1) as guest:
        type_all(guest.terminals[0], data + EOT)

        os.close(guest.terminals.pop())

        assert guest.process.wait(ENOUGH_S) == 7


def test_pty_can_be_opened_repeatedly(channel: Channel) -> None:
    with echoing(channel, 1) as guest:
        for number in range(5):
            os.close(guest.terminals.pop())
            guest.terminals.append(os.open(guest.paths[0], os.O_RDWR | os.O_NOCTTY))
            os.write(guest.terminals[0], b"%d" % number)

            assert show(guest.terminals[0], 1) == b"%d" % number


def test_bridge_passes_the_window_size_to_the_command(channel: Channel) -> None:
    with echoing(channel, 0) as guest:
        (terminal,) = guest.terminals
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 43, 132, 0, 0))
        os.write(terminal, b"x")

        assert show(terminal, 22) == b"132 columns, 43 rows\nx"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_command_and_hangs_up_the_pty(
    number: signal.Signals, channel: Channel
) -> None:
    with echoing(channel, 1) as guest:
        guest.process.send_signal(number)

        assert guest.process.wait(ENOUGH_S) == 128 + number
        assert rest(guest.terminals[0]) == b""


def test_killed_client_leaves_no_process(channel: Channel) -> None:
    with echoing(channel, 1, 2) as guest:
        assert is_alive(guest.inner)

        guest.process.kill()

        wait_for(lambda: not is_alive(guest.inner), "the end of what ran inside")
        assert rest(guest.terminals[0]) == b""


def test_pty_hangs_up_when_the_command_dies(channel: Channel) -> None:
    with echoing(channel, 1) as guest:
        os.kill(guest.inner, signal.SIGKILL)

        assert rest(guest.terminals[0]) == b""
        assert guest.process.wait(ENOUGH_S) == 128 + signal.SIGKILL


def test_command_ends_without_opening_its_terminal(channel: Channel) -> None:
    done = channel.run("sh", "-c", "exit 5", env={**os.environ, "TTYS": "0 1"})

    assert (done.stderr, done.returncode) == (b"", 5)


def type_all(terminal: int, data: bytes) -> None:
    """Type a text; wait as long as it takes."""
    while data:
        data = data[os.write(terminal, data[:4096]) :]
