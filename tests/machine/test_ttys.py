"""A machine's terminals: a pty for each UART, and a break on the console."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvmm import layout
from pyvmm.config import Config
from pyvmm.errors import VmmError
from pyvmm.kvm import regs
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from tests import programs

pytestmark = pytest.mark.kvm

LSR = layout.UART.base + 5
LSR_IDLE, LSR_BI, LSR_DR = 0x60, 0x10, 0x01

TYPED = b"typed before the start"

Boot = Callable[..., Machine]


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Make a machine that runs a program with these X2 and X3."""
    with ExitStack() as stack:

        def make(program: str, x2: int, x3: int = 0, **options: Any) -> Machine:
            image = programs.write(program, tmp_path)
            config = Config(image=image, vcpus=1, memory=16 * MIB, timeout_s=120.0, **options)
            machine = stack.enter_context(Machine(config, unexpected))
            machine.vcpus[0].set_one_reg(regs.X(2), x2)
            machine.vcpus[0].set_one_reg(regs.X(3), x3)
            return machine

        yield make


def unexpected(data: bytes) -> None:
    raise AssertionError(f"on the console: {data!r}")


@pytest.mark.parametrize("number", range(layout.UART_COUNT))
def test_uart_echoes_on_its_pty(boot: Boot, number: int) -> None:
    machine = boot("echo", x2=layout.uart(number).base, ttys=frozenset({number}))
    terminal = os.open(machine.terminals.paths[number], os.O_RDWR | os.O_NOCTTY)
    os.write(terminal, TYPED)

    assert shown_while_it_runs(machine, terminal) == TYPED


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("fcr", [0x07, 0x01])
def test_input_sent_before_a_fifo_reset_arrives_whole(boot: Boot, fcr: int, fast: bool) -> None:
    options = {"ttys": frozenset({0}), "fast_mmio": fast}
    machine = boot("echo after a reset", x2=layout.UART.base, **options)
    machine.vcpus[0].set_one_reg(regs.X(4), fcr)
    terminal = os.open(machine.terminals.paths[0], os.O_RDWR | os.O_NOCTTY)

    assert machine.console.send(TYPED) == len(TYPED)

    assert shown_while_it_runs(machine, terminal) == TYPED


def shown_while_it_runs(machine: Machine, terminal: int) -> bytes:
    """Run a machine until its terminal, which is then closed, shows as many bytes as TYPED."""
    shown = b""

    def person() -> None:
        nonlocal shown
        while len(shown) < len(TYPED) and select.select([terminal], [], [], 15)[0]:
            shown += os.read(terminal, 100)
        machine.stop(9)

    watching = threading.Thread(target=person)
    watching.start()
    code = machine.run()
    watching.join()
    os.close(terminal)
    assert code == 9
    return shown


def test_machine_ends_while_an_unread_pty_is_flooded(boot: Boot) -> None:
    machine = boot("flood", x2=layout.uart(1).base, ttys=frozenset({1}))
    terminal = os.open(machine.terminals.paths[1], os.O_RDWR | os.O_NOCTTY)
    threading.Timer(0.5, machine.stop, (5,)).start()

    code = machine.run()
    machine.close()
    os.close(terminal)

    assert code == 5


def test_break_reaches_the_guest(boot: Boot) -> None:
    machine = boot("load byte", x2=layout.EXIT.base, x3=LSR)

    machine.console.send_break()

    assert machine.run() == LSR_IDLE | LSR_BI | LSR_DR


def test_break_without_room_is_an_error(boot: Boot) -> None:
    machine = boot("spin", x2=0)
    machine.console.send(bytes(1000))

    with pytest.raises(VmmError, match="no room for a break"):
        machine.console.send_break()


def test_virtio_console_has_no_break(boot: Boot) -> None:
    machine = boot("spin", x2=0, console="virtio")

    with pytest.raises(VmmError, match="a virtio console has no break") as caught:
        machine.console.send_break()

    assert caught.value.hint is not None
    assert "`console`=serial" in caught.value.hint
