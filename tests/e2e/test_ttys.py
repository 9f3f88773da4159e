"""Terminals of a guest on ptys of the user's machine."""

from __future__ import annotations

import hashlib
import os
import random
import re
import select
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import programs
from tests.e2e.conftest import ENOUGH_S, FIRST_S, Pyvmm, message
from tests.tty import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

MIB = 1 << 20
EOT = b"\x04"
VIRTIO = ("--console=virtio", "-c1", "virtio-console")

Start = Callable[..., "Guest"]


class Guest:
    """A command that runs a guest, and its terminals."""

    def __init__(self, process: subprocess.Popen[bytes], count: int) -> None:
        self.process = process
        assert process.stderr
        words = r"pyvmm: Assigned terminal ([0-3]) to pty (/dev/pts/\d+)\n"
        found = [re.fullmatch(words, process.stderr.readline().decode()) for _ in range(count)]
        self.paths = {int(match[1]): match[2] for match in found if match}
        self._open: list[int] = []

    def open(self, number: int) -> int:
        """Open a terminal, as a program does."""
        terminal = os.open(self.paths[number], os.O_RDWR | os.O_NOCTTY)
        self._open.append(terminal)
        return terminal

    def close(self, terminal: int) -> None:
        """Close one."""
        self._open.remove(terminal)
        os.close(terminal)

    def end(self) -> tuple[bytes, bytes, int]:
        """Wait for the end; return standard output, and stderr after the paths."""
        out, errors = self.process.communicate(timeout=ENOUGH_S)
        return out, errors, self.process.returncode

    def clean_up(self) -> None:
        """End the command if it still runs."""
        for terminal in list(self._open):
            self.close(terminal)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(pyvmm: Pyvmm) -> Iterator[Start]:
    """Start `pyvmm run` with those terminals on ptys."""
    with ExitStack() as stack:

        def started(*numbers: int, guest: tuple[str, ...], **streams: int) -> Guest:
            options = [word for number in numbers for word in ("--tty", str(number))]
            process = pyvmm.start("run", *options, *guest, **streams, stderr=subprocess.PIPE)
            made = Guest(process, len(numbers))
            stack.callback(made.clean_up)
            return made

        yield started


@pytest.fixture
def echo_on_uart_1(tmp_path: Path) -> str:
    """Write a guest that echoes each byte on its second UART, and never ends."""
    # movz x2, #0x100, lsl #16; movk x2, #0x1000; then the program
    start = b"".join(word.to_bytes(4, "little") for word in (0xD2A0_2002, 0xF282_0002))
    image = tmp_path / "echo-1"
    image.write_bytes(start + programs.words("echo"))
    return str(image)


def show(terminal: int, until: bytes) -> bytes:
    """Read a terminal until a text has come."""
    shown = b""
    while until not in shown:
        assert select.select([terminal], [], [], ENOUGH_S)[0], f"no {until!r} after {shown!r}"
        shown += os.read(terminal, 1 << 16)
    return shown


def type_all(terminal: int, data: bytes) -> None:
    """Type all bytes of a text."""
    while data:
        data = data[os.write(terminal, data[:4096]) :]


def hangs_up(terminal: int) -> bool:
    """Return whether the other end is closed soon."""
    poll = select.poll()
    poll.register(terminal, 0)
    return bool(poll.poll(ENOUGH_S * 1000))


def test_console_appears_on_the_pty_only(start: Start) -> None:
    guest = start(0, guest=("echo",))
    terminal = guest.open(0)

    os.write(terminal, b"one\r\x01x\x01\x01\rquit\r")
    shown = show(terminal, b"interrupts\n")

    assert shown.startswith(b"one\r\x01x\x01\x01\recho: 9 bytes, 2 lines, ")
    assert guest.end() == (b"", b"", 0)


def test_pty_is_accessible_to_the_user_only(start: Start) -> None:
    path = start(0, guest=("echo",)).paths[0]

    status = Path(path).stat()

    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.getuid()


def test_second_uart_is_on_its_pty_and_the_console_on_stdout(
    start: Start, echo_on_uart_1: str
) -> None:
    guest = start(3, 1, guest=("-c1", "-m16", echo_on_uart_1))
    first, third = guest.open(1), guest.open(3)
    every = bytes(range(256))

    os.write(third, b"nobody there")
    os.write(first, every)

    assert show(first, every[-1:]) == every
    guest.process.terminate()
    out, _, code = guest.end()
    assert (out, code) == (b"", 128 + signal.SIGTERM)
    assert hangs_up(first)
    assert hangs_up(third)


def test_terminal_can_be_closed_and_reopened(start: Start) -> None:
    guest = start(0, guest=("echo",))
    for number in range(5):
        terminal = guest.open(0)
        os.write(terminal, b"line %d\r" % number)

        assert show(terminal, b"\r") == b"line %d\r" % number
        guest.close(terminal)


def test_other_programs_can_use_it(start: Start) -> None:
    guest = start(0, guest=("echo",))
    with subprocess.Popen(["cat", guest.paths[0]], stdout=subprocess.PIPE) as cat:
        subprocess.run(["sh", "-c", f"printf 'hello\\rquit\\r' >{guest.paths[0]}"], check=True)
        out, _, code = guest.end()
        shown, _ = cat.communicate(timeout=ENOUGH_S)

    assert shown.startswith(b"hello\recho: 6 bytes, 1 lines, ")
    assert (out, code) == (b"", 0)


def test_megabyte_comes_back_whole_when_the_reader_stalls(start: Start) -> None:
    data = random.Random(12).randbytes(MIB).replace(EOT, b"")
    guest = start(0, guest=VIRTIO)
    terminal = guest.open(0)
    os.write(terminal, b"start\n")
    show(terminal, b"start\n")
    typing = threading.Thread(target=type_all, args=(terminal, data + EOT))
    typing.start()

    shown = b""
    while len(shown) < len(data):
        assert select.select([terminal], [], [], ENOUGH_S)[0]
        shown += os.read(terminal, len(data) - len(shown))
        if len(shown) * 4 // MIB > (len(shown) - 4096) * 4 // MIB:
            time.sleep(0.2)
    rest = show(terminal, b"interrupts\n")
    typing.join()

    assert hashlib.sha256(shown).digest() == hashlib.sha256(data).digest()
    assert rest.startswith(b"echo: %d bytes, " % (len(data) + len("start\n")))
    assert guest.end() == (b"", b"", 0)


def test_guest_runs_on_when_no_reader_has_the_pty_open(start: Start) -> None:
    guest = start(0, guest=("-p", f"flood={MIB}", *VIRTIO))

    assert guest.end() == (b"", b"", 0)


@pytest.mark.matrix
def test_guest_with_a_flood_ends_in_time_when_the_reader_stops(start: Start) -> None:
    guest = start(0, guest=("--timeout=4", "-p", f"flood={16 * MIB}", *VIRTIO))
    guest.open(0)

    out, errors, code = guest.end()

    assert (out, code) == (b"", 124)
    assert b"did not end within 4 s" in errors


def test_virtio_console_gets_the_size_of_the_pty(start: Start) -> None:
    guest = start(0, guest=("-p", "resize", *VIRTIO))
    terminal = guest.open(0)

    subprocess.run(["stty", "-F", guest.paths[0], "rows", "43", "columns", "132"], check=True)
    os.write(terminal, b"x")

    assert show(terminal, b"132 columns, 43 rows\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run(number: signal.Signals, start: Start) -> None:
    guest = start(0, guest=("echo",))
    terminal = guest.open(0)

    guest.process.send_signal(number)

    assert guest.end() == (b"", b"", 128 + number)
    assert hangs_up(terminal)


def test_interrupt_key_on_the_terminal_of_pyvmm_ends_the_run(pyvmm: Pyvmm) -> None:
    with Terminal() as terminal:
        before = terminal.mode
        process = terminal.start([*pyvmm.command, "run", "--tty", "0", "echo"])
        terminal.expect(b"Assigned terminal 0 to pty ")

        terminal.type(b"\x01x\x03")  # no process reads the first two

        assert terminal.wait(process) == 128 + signal.SIGINT
        assert terminal.mode == before


@pytest.mark.usefixtures("nothing_left")
def test_killed_command_leaves_nothing(start: Start, echo_on_uart_1: str) -> None:
    guest = start(0, 1, 2, guest=("-c1", "-m16", echo_on_uart_1))
    terminal = guest.open(1)
    os.write(terminal, b"alive")
    show(terminal, b"alive")

    guest.process.kill()

    assert hangs_up(terminal)


@pytest.mark.usefixtures("nothing_left")
def test_failed_command_leaves_nothing(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "--tty", "0", "--tty", "1", "_NO_FILE_")

    assert "Unable to open kernel _NO_FILE_" in message(done)
    assert done.returncode == 2
