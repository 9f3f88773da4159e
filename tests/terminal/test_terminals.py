"""A guest's terminals: on ptys of this machine, and outside an emulated host."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.base.loop import Loop
from pyvmm.errors import HostError
from pyvmm.terminal import line as lines
from pyvmm.terminal import pty as ptys
from pyvmm.terminal.line import OUTER_VARIABLE
from pyvmm.terminal.pty import TYPED, record
from pyvmm.terminal.terminals import Terminals
from tests.terminal.test_pty import show

ENOUGH_S = 120.0


class Guest:
    """A guest that records its input, while it has room, and its size."""

    def __init__(self) -> None:
        self.room = 1 << 30
        self.typed: dict[int, bytes] = {0: b"", 1: b"", 2: b"", 3: b""}
        self.sizes: list[tuple[int, int]] = []
        self.rooms: dict[int, Callable[[], None]] = {}

    def send(self, data: bytes, terminal: int = 0) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.typed[terminal] += taken
        return len(taken)

    def on_room(self, callback: Callable[[], None], terminal: int = 0) -> None:
        self.rooms[terminal] = callback

    def resize(self, columns: int, rows: int) -> None:
        self.sizes.append((columns, rows))


@pytest.fixture
def guest() -> Guest:
    return Guest()


@contextlib.contextmanager
def running(made: Terminals, guest: Guest) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Attach a guest; return a function that runs its loop until a condition is true."""
    with Loop() as loop:
        detach = made.attach(guest, loop)

        def until(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + ENOUGH_S

            def look() -> None:
                assert time.monotonic() < deadline, "it does not happen"
                loop.stop() if condition() else loop.after(0.01, look)

            loop.after(0, look)
            loop.run()

        yield until
        detach()


def open_terminal(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NOCTTY)


def test_no_numbers_make_no_terminals() -> None:
    with Terminals() as made:
        assert dict(made.paths) == {}
        assert dict(made.outputs) == {}


def test_each_terminal_is_a_pty_of_its_own(guest: Guest) -> None:
    with Terminals({1, 3}) as made, running(made, guest) as until:
        first, third = (open_terminal(made.paths[number]) for number in (1, 3))
        os.write(first, b"to one")
        os.write(third, b"to three")
        made.outputs[1](b"from one")
        made.outputs[3](b"from three")

        until(lambda: (guest.typed[1], guest.typed[3]) == (b"to one", b"to three"))

        assert show(first, 8) == b"from one"
        assert show(third, 10) == b"from three"
        os.close(first)
        os.close(third)


def test_terminals_pass_pyvmms_keys_to_the_guest(guest: Guest) -> None:
    with Terminals({0}) as made, running(made, guest) as until:
        terminal = open_terminal(made.paths[0])

        os.write(terminal, b"a\x01x\x01\x01b")

        until(lambda: guest.typed[0] == b"a\x01x\x01\x01b")
        os.close(terminal)


def test_guest_gets_the_rest_when_it_has_room(guest: Guest) -> None:
    guest.room = 3
    with Terminals({2}) as made, running(made, guest) as until:
        terminal = open_terminal(made.paths[2])
        os.write(terminal, b"hello there")
        until(lambda: guest.typed[2] == b"hel")

        guest.room = 100
        guest.rooms[2]()

        until(lambda: guest.typed[2] == b"hello there")
        os.close(terminal)


@pytest.mark.parametrize(("number", "sizes"), [(0, [(132, 50)]), (1, [])])
def test_size_reaches_only_the_console(
    number: int, sizes: list[tuple[int, int]], guest: Guest
) -> None:
    with Terminals({number}) as made, running(made, guest) as until:
        terminal = open_terminal(made.paths[number])
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
        os.write(terminal, b"x")

        until(lambda: guest.typed[number] == b"x")

        assert guest.sizes == sizes
        os.close(terminal)


def test_terminal_can_be_attached_to_another_guest(guest: Guest) -> None:
    another = Guest()
    with Terminals({1}) as made:
        terminal = open_terminal(made.paths[1])
        with running(made, guest) as until:
            os.write(terminal, b"one")
            until(lambda: guest.typed[1] == b"one")

        with running(made, another) as until:
            os.write(terminal, b"two")
            until(lambda: another.typed[1] == b"two")

        os.close(terminal)
    assert guest.typed[1] == b"one"


def test_stalled_reader_blocks_the_guest_until_the_end_of_the_run() -> None:
    with Terminals({1}) as made:
        terminal = open_terminal(made.paths[1])
        printing = threading.Thread(
            target=lambda: [made.outputs[1](bytes(10_000)) for _ in range(300)]
        )
        printing.start()
        printing.join(0.5)
        held_up = printing.is_alive()

        made.set_blocking(False)
        printing.join(ENOUGH_S)

        assert held_up
        assert not printing.is_alive()
        os.close(terminal)


def test_output_before_the_end_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptys, "GRACE_S", 3600.0)  # the reader may be slow
    data = random.Random(8).randbytes(200_000)
    made = Terminals({1})
    terminal = open_terminal(made.paths[1])
    made.outputs[1](data)
    ending = threading.Thread(target=made.close)

    ending.start()
    shown = show(terminal, len(data))
    ending.join()

    assert shown == data
    os.close(terminal)


def handover(name: str, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    """Start the process that passes its descriptors 0 and 1."""
    command = [sys.executable, "-m", "pyvmm.host.inside.handover", name]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout)


def outside(monkeypatch: pytest.MonkeyPatch, number: int) -> str:
    """Name a terminal that the pyvmm outside has made; return its socket's name."""
    name = f"pyvmm-test-{secrets.token_hex(8)}"
    monkeypatch.setenv(OUTER_VARIABLE, json.dumps({number: ["/dev/pts/outside", name]}))
    return name


def test_terminal_outside_is_reached_by_passed_descriptors(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = outside(monkeypatch, 2)
    process = handover(name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout

    with Terminals({2}) as made, running(made, guest) as until:
        paths = dict(made.paths)
        process.stdin.write(record(TYPED, b"typed"))
        process.stdin.flush()
        made.outputs[2](b"shown")
        until(lambda: guest.typed[2] == b"typed")
    shown, _ = process.communicate(timeout=ENOUGH_S)

    assert paths == {2: "/dev/pts/outside"}
    assert shown == b"shown"
    assert process.returncode == 0


def test_handover_process_ends_with_its_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = outside(monkeypatch, 1)
    process = handover(name, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    imports = "import os; from pyvmm.terminal.terminals import Terminals"
    code = f"{imports}; Terminals({{1}}); os.kill(os.getpid(), 9)"

    subprocess.run([sys.executable, "-c", code])

    assert process.wait(ENOUGH_S) == 0


def test_close_does_not_wait_for_ever_for_a_stalled_reader_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "GRACE_S", 0.2)
    name = outside(monkeypatch, 1)
    process = handover(name, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    made = Terminals({1})
    made.outputs[1](bytes(200_000))

    made.close()

    assert process.wait(ENOUGH_S) == 0
    assert process.stdout
    process.stdout.close()


def test_missing_handover_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "HANDOVER_S", 0.1)
    outside(monkeypatch, 1)

    with pytest.raises(HostError, match="cannot reach /dev/pts/outside from the emulated host"):
        Terminals({1})
