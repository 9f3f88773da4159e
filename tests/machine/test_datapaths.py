"""The data paths in C on a real machine, with pipes: what reaches Python, and what arrives."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import pyvmm
from pyvmm.base.loop import Loop
from pyvmm.config import Config
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from pyvmm.terminal.stdio import Input, Output

pytestmark = pytest.mark.kvm

GUEST = Path(pyvmm.__file__).parent / "guests/virtio-console"
EOT = b"\x04"
PIPE = 4096
ENOUGH_S = 120


class Pipes:
    """Standard input and output of a run: pipes, the output's a small one."""

    def __init__(self) -> None:
        self.stdin, self.typist = os.pipe()
        self.reader, stdout = os.pipe()
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, PIPE)
        self.output = Output(stdout)
        self.text = b""
        self._stdout = stdout
        self._thread = threading.Thread(target=self._read)
        self.may_read = threading.Event()

    def _read(self) -> None:
        self.may_read.wait()
        while data := os.read(self.reader, PIPE):
            self.text += data

    def start(self, *, reading: bool = True) -> None:
        if reading:
            self.may_read.set()
        self._thread.start()

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + ENOUGH_S
        while text not in self.text:
            assert time.monotonic() < deadline, self.text[-200:]
            time.sleep(0.01)

    def end(self) -> bytes:
        """Return all output."""
        self.may_read.set()
        self.output.close()
        os.close(self._stdout)
        self._thread.join(ENOUGH_S)
        for fd in (self.stdin, self.reader):
            os.close(fd)
        return self.text


@pytest.fixture
def pipes() -> Pipes:
    return Pipes()


Make = Callable[..., Machine]


@pytest.fixture
def make(pipes: Pipes) -> Iterator[Make]:
    with ExitStack() as stack:

        def machine(params: str = "", **options: Any) -> Machine:
            config = Config(
                image=GUEST, params=params, console="virtio", vcpus=1, memory=16 * MIB, **options
            )
            made = Machine(
                config,
                pipes.output.write,
                set_blocking=pipes.output.set_blocking,
                direct=pipes.output.direct(),
            )
            return stack.enter_context(made)

        yield machine


def run(machine: Machine, pipes: Pipes, typed: bytes = b"") -> int:
    """Run a machine with input from the pipe, as `pyvmm run` does."""

    def type_all() -> None:
        left = typed
        while left:
            left = left[os.write(pipes.typist, left) :]
        os.close(pipes.typist)

    threading.Thread(target=type_all).start()
    with Loop() as loop:
        keyboard = Input(
            loop, machine.console.send, lambda key: None, pipes.stdin, read=machine.console.read
        )
        machine.console.on_room(keyboard.resume)
        keyboard.start()
        code = machine.run(loop)
        keyboard.pause()
        return code


def fnv(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash."""
    return reduce(
        lambda sum_, byte: (sum_ ^ byte) * 0x100000001B3 % 2**64, data, 0xCBF29CE484222325
    )


def flooded(size: int) -> bytes:
    """Return what the guest prints with flood=SIZE."""
    return b"".join(b"%015d %047d\n" % (at, 0) for at in range(0, size, 64))


def exits(machine: Machine) -> dict[str, int]:
    (counts,) = machine.counts.exits()
    return counts


def test_output_and_input_by_pipes_are_whole_and_reach_little_python(
    make: Make, pipes: Pipes
) -> None:
    machine = make(timeout_s=300.0)
    typed = bytes(range(5, 256)) * 400  # without EOT
    pipes.start()

    assert run(machine, pipes, typed + EOT) == 0
    machine.close()
    text = pipes.end()

    assert typed in text
    assert text.startswith(b"!\nvirtio-console: ready\n")
    assert b"echo: %d bytes" % len(typed) in text


def test_input_arrives_whole_in_a_guest_that_pauses(make: Make, pipes: Pipes) -> None:
    typed = os.urandom(3 * MIB // 2)
    machine = make(f"drain={len(typed)}", timeout_s=300.0)
    pipes.start()

    assert run(machine, pipes, typed) == 0
    machine.close()

    assert pipes.end().endswith(b"hash 0x%x\n" % fnv(typed))


def test_output_to_a_fast_reader_is_served_in_c(make: Make, pipes: Pipes) -> None:
    machine = make(f"flood={MIB}", timeout_s=300.0)
    pipes.start()

    assert run(machine, pipes) == 0
    counts = exits(machine)
    machine.close()

    assert pipes.end() == b"!\n" + flooded(MIB)
    assert counts["virtio doorbell write"] > 0
    assert counts["virtio doorbell write"] + counts["virtio0 write"] >= MIB // 4096


def test_reader_that_reads_nothing_stops_neither_a_pause_nor_a_stop(
    make: Make, pipes: Pipes
) -> None:
    machine = make(f"flood={64 * MIB}")
    pipes.start(reading=False)
    machine.start()
    deadline = time.monotonic() + ENOUGH_S
    while len(pipes.output._pending) < Output.ROOM:  # the guest waits for the reader
        assert time.monotonic() < deadline
        time.sleep(0.01)

    for _ in range(3):
        machine.pause()
        machine.resume()
    pipes.may_read.set()
    pipes.wait_for(flooded(MIB))
    machine.stop(5)
    machine.close()

    assert machine.result() == 5
    text = pipes.end().removeprefix(b"!\n")
    assert flooded(len(text)).startswith(text)


def test_pauses_amid_output_lose_and_repeat_nothing(make: Make, pipes: Pipes) -> None:
    machine = make(f"flood={MIB}")
    pipes.start()
    machine.start()
    for kib in range(32, 1024, 64):  # not by time: each pause comes after more output
        pipes.wait_for(b"%015d " % (kib << 10))
        machine.pause()
        machine.resume()
    pipes.wait_for(flooded(MIB)[-64:])
    machine.stop(0)
    machine.close()

    assert pipes.end() == b"!\n" + flooded(MIB)


def test_device_that_the_guest_resets_amid_input_works_again(make: Make, pipes: Pipes) -> None:
    machine = make("restart", timeout_s=300.0)
    pipes.start()
    machine.start()
    for word in (b"one", b"two", b"three"):
        pipes.text = b""
        left = word
        while left:
            left = left[machine.console.send(left) :]
        pipes.wait_for(b"again\n")
    machine.stop(0)
    machine.close()
    pipes.end()


def test_without_the_fast_path_python_serves_all(make: Make, pipes: Pipes) -> None:
    machine = make(f"flood={MIB // 4}", timeout_s=300.0, fast_mmio=False)
    pipes.start()

    assert run(machine, pipes) == 0
    counts = exits(machine)
    machine.close()

    assert pipes.end() == b"!\n" + flooded(MIB // 4)
    assert "virtio doorbell write" not in counts
