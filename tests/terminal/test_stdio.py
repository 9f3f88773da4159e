"""The console, on real terminals and pipes."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pty
import termios
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.base.loop import Loop
from pyvmm.terminal.stdio import ESCAPE, KEYS, Escapes, Input, Key, Output, Terminal

# Maps every byte to one of a few, with the escape and keys among them
FEW = bytes(b"\x01\x01xhXab\x00"[n % 8] for n in range(256))
ENOUGH_S = 120.0  # for anything that should happen


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Make a pseudo-terminal: the person's end, and the program's."""
    person, program = pty.openpty()
    yield person, program
    os.close(person)
    os.close(program)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Make a pipe: its reading and its writing end."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


def repeat(times: int, action: Callable[[], object]) -> threading.Thread:
    """Start a thread that repeats an action, like a busy guest."""

    def work() -> None:
        for _ in range(times):
            action()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait until a condition is true, and return whether it is."""
    deadline = time.monotonic() + ENOUGH_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_terminal_is_raw_in_the_block_and_restored_after(terminal: tuple[int, int]) -> None:
    _, program = terminal
    before = termios.tcgetattr(program)

    with Terminal(program):
        during = termios.tcgetattr(program)

    assert before[3] & termios.ICANON
    assert not during[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert not during[0] & (termios.ICRNL | termios.IXON)
    assert during[1] & termios.OPOST
    assert termios.tcgetattr(program) == before


def test_terminal_with_raw_output_is_raw_both_ways(terminal: tuple[int, int]) -> None:
    _, program = terminal
    before = termios.tcgetattr(program)

    with Terminal(program, raw_output=True) as raw:
        during = termios.tcgetattr(program)
        assert raw.enter_raw_mode()

    assert not during[1] & termios.OPOST
    assert not during[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert termios.tcgetattr(program) == before


def test_terminal_is_restored_after_an_error(terminal: tuple[int, int]) -> None:
    _, program = terminal
    before = termios.tcgetattr(program)

    with pytest.raises(KeyboardInterrupt), Terminal(program):
        raise KeyboardInterrupt

    assert termios.tcgetattr(program) == before


def test_terminal_entered_again_keeps_the_first_state_to_restore(
    terminal: tuple[int, int],
) -> None:
    _, program = terminal
    before = termios.tcgetattr(program)

    with Terminal(program) as raw:
        raw.enter_raw_mode()

    assert termios.tcgetattr(program) == before


def test_hung_up_terminal_is_closed_without_an_error() -> None:
    person, program = pty.openpty()

    with Terminal(program):
        os.close(person)

    os.close(program)


def test_terminal_on_a_pipe_does_nothing(pipe: tuple[int, int]) -> None:
    with Terminal(pipe[0]) as none:
        assert none.usable


def test_output_writes_a_line_as_soon_as_it_ends(pipe: tuple[int, int]) -> None:
    with Output(pipe[1]) as output:
        for byte in b"hello\n":
            output.write(bytes([byte]))

        assert os.read(pipe[0], 100) == b"hello\n"


def test_output_shows_a_prompt_without_newline(pipe: tuple[int, int]) -> None:
    with Output(pipe[1]) as output:
        output.write(b"login: ")

        assert os.read(pipe[0], 100) == b"login: "


def test_output_gathers_bytes_into_few_writes(pipe: tuple[int, int]) -> None:
    with Output(pipe[1]) as output:
        output.GATHER_S = ENOUGH_S
        for _ in range(100):
            output.write(b".")
        output.write(b"\n")

        assert os.read(pipe[0], 200) == b"." * 100 + b"\n"


def test_output_is_complete_after_close(pipe: tuple[int, int]) -> None:
    with Output(pipe[1]) as output:
        output.write(b"a\nb\nlast words")

    assert os.read(pipe[0], 100) == b"a\nb\nlast words"


def test_output_blocks_the_guest_without_a_reader_and_loses_nothing(
    pipe: tuple[int, int],
) -> None:
    total = 4 * Output.ROOM
    line = b"x" * 1023 + b"\n"
    with Output(pipe[1]) as output:
        guest = repeat(total // len(line), lambda: output.write(line))
        guest.join(0.2)
        held_up = guest.is_alive()
        received = 0
        while received < total:
            received += len(os.read(pipe[0], 1 << 16))
        guest.join(ENOUGH_S)

    assert held_up
    assert not guest.is_alive()
    assert received == total


def test_non_blocking_output_takes_everything_and_loses_nothing(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1])
    total = 500 * 4096
    guest = repeat(500, lambda: output.write(b"x" * 4096))
    guest.join(0.2)
    held_up = guest.is_alive()

    output.set_blocking(False)
    guest.join(ENOUGH_S)
    gone_on = not guest.is_alive()
    received = 0
    while received < total:
        received += len(os.read(pipe[0], 1 << 16))
    output.close()

    assert held_up
    assert gone_on
    assert received == total


def test_drain_gives_up_after_its_timeout(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1])
    output.write(b"x" * Output.ROOM)
    started = time.monotonic()

    output.drain(0.1)

    assert time.monotonic() - started < ENOUGH_S
    os.close(pipe[0])
    output.close()


def test_output_keeps_the_write_error_and_drops_the_rest(pipe: tuple[int, int]) -> None:
    calls = []
    os.close(pipe[0])

    with Output(pipe[1]) as output:
        output.on_gone = lambda: calls.append("gone")
        output.write(b"one\n")
        assert wait_until(lambda: bool(calls))
        output.write(b"two\n")

    assert isinstance(output.error, BrokenPipeError)
    assert calls == ["gone"]


def test_failed_output_blocks_no_writer(pipe: tuple[int, int]) -> None:
    with Output(pipe[1]) as output:
        guest = repeat(500, lambda: output.write(b"x" * 4096))
        guest.join(0.1)
        os.close(pipe[0])
        guest.join(ENOUGH_S)

    assert not guest.is_alive()


def test_full_disk_is_an_error_of_the_output() -> None:
    full = os.open("/dev/full", os.O_WRONLY)

    with Output(full) as output:
        output.write(b"one\n")

    os.close(full)
    assert output.error is not None
    assert output.error.errno == errno.ENOSPC


def test_output_on_a_non_blocking_descriptor_waits_for_room(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)
    total = 64 << 10
    with Output(pipe[1]) as output:
        output.write(b"x" * total)
        received = 0
        while received < total:
            received += len(os.read(pipe[0], 4096))

    assert received == total


@pytest.mark.parametrize(
    ("pieces", "guest", "keys"),
    [
        ([b"plain"], b"plain", []),
        ([b"\x01x"], b"", [Key.STOP]),
        ([b"a\x01", b"xb"], b"ab", [Key.STOP]),
        ([b"\x01\x01"], b"\x01", []),
        ([b"\x01\x01x"], b"\x01x", []),
        ([b"\x01h\x01x"], b"", [Key.HELP, Key.STOP]),
        ([b"\x01q"], b"q", []),
        ([b"\x03\x1a\x1c"], b"\x03\x1a\x1c", []),
        ([bytes(range(2, 256))], bytes(range(2, 256)), []),
    ],
)
def test_escapes_take_pyvmms_keys_and_pass_the_rest(
    pieces: list[bytes], guest: bytes, keys: list[Key]
) -> None:
    escapes = Escapes()

    parts = [escapes.split(piece) for piece in pieces]

    assert b"".join(part for part, _ in parts) == guest
    assert [key for _, found in parts for key in found] == keys


@given(
    data=st.binary(max_size=40).map(lambda data: data.translate(FEW)),
    cuts=st.sets(st.integers(0, 40)),
)
def test_escapes_split_keys_from_any_pieces(data: bytes, cuts: set[int]) -> None:
    guest, keys, escaped = b"", [], False
    for byte in data:
        if escaped:
            escaped = False
            if byte in KEYS:
                keys.append(KEYS[byte])
                continue
        elif byte == ESCAPE:
            escaped = True
            continue
        guest += bytes([byte])
    places = sorted({0, len(data)} | {cut for cut in cuts if cut < len(data)})
    escapes = Escapes()

    parts = [escapes.split(data[low:high]) for low, high in itertools.pairwise(places)]

    assert b"".join(part for part, _ in parts) == guest
    assert [key for _, found in parts for key in found] == keys


class Guest:
    """A guest that takes input until its FIFO is full, like a UART."""

    def __init__(self, depth: int = 16) -> None:
        self.depth = depth
        self.fifo = b""
        self.received = b""

    def receive(self, data: bytes) -> int:
        taken = data[: self.depth - len(self.fifo)]
        self.fifo += taken
        return len(taken)

    def read(self) -> None:
        self.received += self.fifo
        self.fifo = b""


def test_input_reaches_the_guest_no_faster_than_it_reads(pipe: tuple[int, int]) -> None:
    guest = Guest()
    sent = bytes(range(2, 250)) * 1000
    sender = repeat(1, lambda: os.write(pipe[1], sent))
    with Loop() as loop:
        typed = Input(loop, guest.receive, lambda key: None, fd=pipe[0])
        typed.start()

        def read_fifo() -> None:
            guest.read()
            typed.resume()
            if len(guest.received) == len(sent):
                loop.stop()
            else:
                loop.call(read_fifo)

        loop.call(read_fifo)
        loop.after(ENOUGH_S * 4, loop.stop)
        loop.run()
    sender.join(ENOUGH_S)

    assert guest.received == sent


def test_keys_work_while_the_guest_reads_no_input(terminal: tuple[int, int]) -> None:
    person, program = terminal
    keys = []
    with Loop() as loop, Terminal(program):

        def on_key(key: Key) -> None:
            keys.append(key)
            loop.stop()

        Input(loop, lambda data: 0, on_key, fd=program).start()
        os.write(person, b"is anybody there?" * 10 + b"\x01x")
        loop.after(ENOUGH_S, loop.stop)
        loop.run()

    assert keys == [Key.STOP]


def typed_to_guest(fd: int, writer: int, data: bytes) -> tuple[bytes, list[Key]]:
    """Type these bytes; return what the guest got until a final newline, and the keys."""
    got = bytearray()
    keys: list[Key] = []
    with Loop() as loop:

        def receive(piece: bytes) -> int:
            got.extend(piece)
            if got.endswith(b"\n"):
                loop.stop()
            return len(piece)

        Input(loop, receive, keys.append, fd=fd).start()
        os.write(writer, data)
        loop.after(ENOUGH_S, loop.stop)
        loop.run()
    return bytes(got), keys


def test_escape_is_a_key_on_a_terminal(terminal: tuple[int, int]) -> None:
    person, program = terminal
    with Terminal(program):
        found = typed_to_guest(program, person, b"a\x01xb\x01q\n")

    assert found == (b"abq\n", [Key.STOP])


def test_escape_from_a_pipe_goes_to_the_guest(pipe: tuple[int, int]) -> None:
    found = typed_to_guest(pipe[0], pipe[1], b"a\x01xb\x01q\n")

    assert found == (b"a\x01xb\x01q\n", [])


def test_input_put_back_comes_first(pipe: tuple[int, int]) -> None:
    guest = Guest()
    with Loop() as loop:
        typed = Input(loop, guest.receive, lambda key: None, fd=pipe[0])
        os.write(pipe[1], b"new")
        typed.put_back(b"old, ")
        typed.start()
        loop.after(0.0, typed.resume)
        wait_for_input(loop, lambda: len(guest.fifo) == 8)

    assert guest.fifo == b"old, new"


def wait_for_input(loop: Loop, condition: Callable[[], bool]) -> None:
    """Run the loop until a condition is true."""

    def look() -> None:
        if condition():
            loop.stop()
        else:
            loop.after(0.005, look)

    loop.call(look)
    loop.after(ENOUGH_S, loop.stop)
    loop.run()


def test_input_reads_ahead_up_to_its_limit(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(pipe[1], b"x" * (200 << 10))
    with Loop() as loop:
        Input(loop, lambda data: 0, lambda key: None, fd=pipe[0]).start()
        loop.after(0.2, loop.stop)
        loop.run()

    left = 0
    os.set_blocking(pipe[0], False)
    while True:
        try:
            left += len(os.read(pipe[0], 1 << 20))
        except BlockingIOError:
            break
    assert 100 << 10 < left < 200 << 10


@pytest.mark.parametrize("ending", ["eof", "null"])
def test_end_of_input_does_not_end_the_run(pipe: tuple[int, int], ending: str) -> None:
    guest = Guest()
    fd = os.open(os.devnull, os.O_RDONLY) if ending == "null" else pipe[0]
    os.write(pipe[1], b"" if ending == "null" else b"last")
    os.close(pipe[1])
    rounds = []
    with Loop() as loop:
        Input(loop, guest.receive, lambda key: None, fd=fd).start()
        for moment in range(5):
            loop.after(0.01 * moment, lambda: rounds.append("alive"))
        loop.after(0.1, loop.stop)
        loop.run()
    if ending == "null":
        os.close(fd)

    assert len(rounds) == 5
    assert guest.fifo == (b"" if ending == "null" else b"last")


def test_terminal_that_hangs_up_ends_the_input(terminal: tuple[int, int]) -> None:
    person, program = pty.openpty()
    with Loop() as loop:
        Input(loop, lambda data: len(data), lambda key: None, fd=program).start()
        os.close(person)
        started = time.process_time()
        loop.after(0.2, loop.stop)
        loop.run()
        used = time.process_time() - started
    os.close(program)

    assert used < 0.1  # no busy loop on a descriptor that is always ready
