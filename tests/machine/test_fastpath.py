"""The fast paths of UARTs: a guest and a user see the same as without them."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyvmm import layout
from pyvmm.config import Config
from pyvmm.devices.bus import Bus
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import MpState
from pyvmm.layout import MIB
from pyvmm.machine.fastpath import EXITS_FIRST, FastPaths, Page
from pyvmm.machine.machine import Machine
from tests import programs
from tests.kvm import guest as tiny

pytestmark = pytest.mark.kvm

SCRIPT = tiny.RAM_BASE + 0x1_0000
LOG = tiny.RAM_BASE + 0x10_0000
MARK = layout.RTC.base  # claimed, but not a UART
READS = {1: 0, 2: 1, 4: 2, 8: 3}  # the script's codes of reads, by length
WRITES = {1: 4, 4: 5}
AT_MARK = 6

THR, IER, FCR, LCR, MCR, LSR, SCR = 0, 1, 2, 3, 4, 5, 7

Step = tuple[int, int, int]  # what, offset, value


@dataclass
class Seen:
    """All that the guest and the user see of a script."""

    reads: list[int] = field(default_factory=list)
    output: list[bytes] = field(default_factory=list)  # up to each mark
    levels: list[bool] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)


def calm(rng: random.Random) -> list[Step]:
    """Return the steps that enable a port's fast path from any state."""
    drain = [(READS[1], LSR, 0), (READS[1], 0, 0)] * 17
    rest = [(READS[1], LSR, 0), (READS[1], 6, 0)]
    set_up = [(WRITES[1], LCR, 3), (WRITES[1], MCR, rng.choice([0, 8])), (WRITES[1], IER, 0)]
    return [*set_up, *drain, *rest]


def polled(rng: random.Random) -> list[Step]:
    """Return the steps of a kernel's console that prints a text."""
    text = [
        step
        for _ in range(rng.randrange(4, 60))
        for step in ((READS[1], LSR, 0), (WRITES[1], THR, rng.randrange(256)))
    ]
    before = rng.choice([0, 0, 0, 1, 5])
    return [(WRITES[1], IER, 0), *text, (WRITES[1], IER, before)]


def anything(rng: random.Random) -> list[Step]:
    """Return accesses to every register with every width."""
    steps = []
    for _ in range(rng.randrange(1, 12)):
        if rng.random() < 0.5:
            width = rng.choice([1, 1, 1, 2, 4, 8])
            steps.append((READS[width], rng.randrange(0, 16, width), 0))
        else:
            width = rng.choice([1, 1, 1, 4])
            value = rng.choice([0, 1, 2, 3, 0x80, 0x10, rng.randrange(256)])
            steps.append((WRITES[width], rng.randrange(0, 9, width), value))
    return steps


def script(rng: random.Random) -> list[Step]:
    steps: list[Step] = []
    for _ in range(rng.randrange(4, 12)):
        part = rng.choices([polled, anything, calm], [3, 4, 2])[0]
        steps += [*part(rng), (AT_MARK, 0, 0)]
    return steps


def play(
    steps: list[Step], rng: random.Random, *, fast: bool, pages: bool = True
) -> tuple[Seen, int]:
    """Run a guest that makes these accesses, with input at its marks; return its exits."""
    seen, out = Seen(), bytearray()
    with tiny.guest("script") as made, ExitStack() as undo:
        uart = Uart8250(seen.levels.append, out.extend)
        bus = Bus()
        bus.add(layout.uart(0), uart)
        bus.add(layout.RTC, uart)  # never called: marks are handled here
        words = [struct.pack("<BBBB", what, offset, 0, value) for what, offset, value in steps]
        made.memory.write(SCRIPT, b"".join(words))
        made.set(x0=SCRIPT, x1=LOG, x2=layout.UART.base, x9=MARK)
        paths = None
        if fast:
            paths = FastPaths(
                made.vm, made.vcpus, [region for region, _ in bus], [uart], complete_unclaimed=True,
                pages=pages,
            )  # fmt: skip
            undo.callback(paths.close)
        exits = 0
        for _ in range(sum(what == AT_MARK for what, _, _ in steps)):
            exits += run_to_mark(made, bus, paths)
            if paths is not None:
                paths.flush()
            seen.output.append(bytes(out))
            seen.states.append(uart.state())
            give_input(uart, rng)
        reads = sum(what in READS.values() for what, _, _ in steps)
        seen.reads = list(struct.unpack(f"<{reads}Q", made.memory.read(LOG, 8 * reads)))
    return seen, exits


def run_to_mark(made: tiny.Guest, bus: Bus, paths: FastPaths | None) -> int:
    """Handle a guest's exits up to its mark; return their number."""
    for exits in range(1, 1_000_000):
        leave = made.vcpu.run()
        if paths is not None and made.vcpu.attention:
            paths.attend()
        if leave.address == MARK:
            return exits
        region, device = bus.find(leave.address)
        offset = leave.address - region.base
        if leave.is_write:
            device.mmio_write(offset, leave.length, leave.data)
        else:
            made.vcpu.set_mmio_data(device.mmio_read(offset, leave.length))
    raise AssertionError("no mark")


def give_input(uart: Uart8250, rng: random.Random) -> None:
    kind = rng.random()
    if kind < 0.3:
        uart.receive(rng.randbytes(rng.choice([1, 1, 3, 20])))
    elif kind < 0.35:
        uart.receive_break()


@pytest.mark.parametrize("seed", range(8))
def test_guest_and_user_see_the_same_on_both_paths(seed: int) -> None:
    plain_exits = fast_exits = 0
    for number in range(5):
        steps = script(random.Random(f"{seed} {number}"))
        plain, exits = play(steps, random.Random(number), fast=False)
        plain_exits += exits
        fast, exits = play(steps, random.Random(number), fast=True)
        fast_exits += exits

        assert fast == plain

    assert fast_exits < plain_exits / 2  # the fast path was used


def test_polled_output_makes_no_exits() -> None:
    steps = [(READS[1], LSR, 0), (WRITES[1], THR, ord("x"))] * 500

    seen, exits = play([*steps, (AT_MARK, 0, 0)], random.Random(0), fast=True)

    assert seen.output == [b"x" * 500]
    assert set(seen.reads) == {0x60}
    assert exits < EXITS_FIRST


def test_polled_output_changes_no_memory_slot_without_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = [(READS[1], LSR, 0), (WRITES[1], THR, ord("x"))] * 500
    mapped: list[bool] = []
    monkeypatch.setattr(Page, "map", lambda _, on: mapped.append(on))

    seen, _ = play([*steps, (AT_MARK, 0, 0)], random.Random(0), fast=True, pages=False)

    assert seen.output == [b"x" * 500]
    assert mapped == []


def test_line_of_a_console_that_has_no_interrupts_makes_no_exits() -> None:
    text = [(READS[1], LSR, 0), (WRITES[1], THR, ord("x"))] * 20
    lines = [(WRITES[1], IER, 0), *text, (WRITES[1], IER, 0)] * 20

    seen, exits = play([*lines, (AT_MARK, 0, 0)], random.Random(0), fast=True)

    assert seen.output == [b"x" * 400]
    assert exits < EXITS_FIRST


class Screen:
    """Records a guest's output."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data

    def wait_for(self, count: int) -> bytes:
        """Wait up to 30 s for that many bytes, and return the output."""
        deadline = time.monotonic() + 120
        while len(self.text) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.text


@contextmanager
def machine(path: Path, program: str, screen: Screen, **options: Any) -> Iterator[Machine]:
    hooks = {"on_unclaimed": options.pop("on_unclaimed", None)}
    config = Config(
        image=programs.write(program, path), memory=16 * MIB, timeout_s=120.0,
        **{"vcpus": 1, **options},
    )  # fmt: skip
    with Machine(config, screen.write, **hooks) as made:
        yield made


def print_by_polling(made: Machine, vcpu: int, count: int, first: int = 0) -> None:
    """Make a vCPU print that many bytes, then write to the exit register."""
    where = {1: first, 2: layout.UART.base, 4: count, 5: layout.EXIT.base}
    for number, value in where.items():
        made.vcpus[vcpu].set_one_reg(regs.X(number), value)
    made.vcpus[vcpu].set_one_reg(regs.PC, made.image.entry)
    made.vcpus[vcpu].set_mp_state(MpState.RUNNABLE)


def counting(count: int, first: int = 0) -> bytes:
    return bytes((first + n) & 0xFF for n in range(count))


@pytest.mark.parametrize("fast", [True, False])
def test_output_is_complete_when_the_run_ends(tmp_path: Path, fast: bool) -> None:
    screen = Screen()
    with machine(tmp_path, "poll", screen, fast_mmio=fast) as made:
        print_by_polling(made, 0, 3000, first=1)

        code = made.run()

        assert code == (1 + 3000) & 0xFF
        assert screen.text == counting(3000, 1)
        (exits,) = made.counts.exits()
        assert (exits["uart0 write"] == 3000) == (not fast)


def test_output_arrives_while_the_guest_makes_no_exit(tmp_path: Path) -> None:
    screen = Screen()
    with machine(tmp_path, "poll", screen) as made:
        print_by_polling(made, 0, 40)
        made.vcpus[0].set_one_reg(regs.X(5), made.memory.base + MIB)  # not an exit: RAM
        made.start()

        assert screen.wait_for(40) == counting(40)
        time.sleep(0.1)
        assert sum(made.counts.exits()[0].values()) < 3 * EXITS_FIRST
        assert 0 < made.counts.bytes_without_exit()["uart0"] < 40


def test_pause_outputs_everything_the_guest_has_sent(tmp_path: Path) -> None:
    screen = Screen()
    with machine(tmp_path, "poll", screen) as made:
        print_by_polling(made, 0, 1 << 40)
        made.start()
        for _ in range(20):
            screen.wait_for(len(screen.text) + 1)

            made.pause()

            sent = made.vcpus[0].get_one_reg(regs.X(1))  # a store may come before its add
            assert len(screen.text) - sent in (0, 1)
            made.resume()
        assert screen.text == counting(len(screen.text))


def test_output_of_every_vcpu_is_complete_while_input_arrives(tmp_path: Path) -> None:
    """Four vCPUs print; unread input makes the page unusable."""
    screen, vcpus, count = Screen(), 4, 700
    with machine(tmp_path, "poll", screen, vcpus=vcpus) as made:
        for number in range(vcpus):
            print_by_polling(made, number, count, first=64 * number)
            made.vcpus[number].set_one_reg(regs.X(5), made.memory.base + MIB)
        made.start()
        done = threading.Event()

        def type_on() -> None:
            while not done.wait(0.02):
                made.console.send(b"x")

        typist = threading.Thread(target=type_on)
        typist.start()
        text = screen.wait_for(vcpus * count)
        done.set()
        typist.join()

    everything = b"".join(counting(count, 64 * number) for number in range(vcpus))
    assert sorted(text) == sorted(everything)


def test_c_completes_and_counts_unclaimed_accesses(tmp_path: Path) -> None:
    with machine(tmp_path, "load", Screen()) as made:
        made.vcpus[0].set_one_reg(regs.X(1), 99)
        made.vcpus[0].set_one_reg(regs.X(2), layout.EXIT.base)
        made.vcpus[0].set_one_reg(regs.X(3), layout.FLASH.base)

        assert made.run() == 0
        assert made.counts.exits() == [{"exit write": 1, "unclaimed read": 1}]


def test_on_unclaimed_is_called_with_each_unclaimed_access(tmp_path: Path) -> None:
    heard: list[tuple[int, Exit]] = []
    hear = lambda vcpu, access: heard.append((vcpu, access))  # noqa: E731 - in one line
    with machine(tmp_path, "load", Screen(), on_unclaimed=hear) as made:
        made.vcpus[0].set_one_reg(regs.X(2), layout.EXIT.base)
        made.vcpus[0].set_one_reg(regs.X(3), layout.FLASH.base)

        assert made.run() == 0
        assert [access.address for _, access in heard] == [layout.FLASH.base]
