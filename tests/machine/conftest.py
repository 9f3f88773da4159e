"""A machine of the library on a real KVM, and the output of its guest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvmm.config import Config
from pyvmm.kvm import regs
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from tests import programs

SYSTEM_OFF = 0x8400_0008  # PSCI.  Source: Arm DEN 0022
SYSTEM_RESET = 0x8400_0009

Boot = Callable[..., Machine]


class Screen:
    """Records a guest's output."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def boot(tmp_path: Path, screen: Screen) -> Iterator[Boot]:
    """Make a machine that runs a program with these X1 and X2, for at most 120 s."""
    with ExitStack() as stack:

        def make(program: str, x1: int = 0, x2: int = 0, **options: Any) -> Machine:
            hooks = {
                name: options.pop(name)
                for name in ("on_unclaimed", "set_blocking", "log")
                if name in options
            }
            output = options.pop("output", screen.write)
            image = programs.write(program, tmp_path)
            shape = {"vcpus": 1, "memory": 16 * MIB, "timeout_s": 120.0} | options
            machine = Machine(Config(image=image, **shape), output, **hooks)
            stack.enter_context(machine)
            machine.vcpus[0].set_one_reg(regs.X(1), x1)
            machine.vcpus[0].set_one_reg(regs.X(2), x2)
            return machine

        yield make


def let_reset(machine: Machine) -> None:
    """Resume a guest, and wait until it has reset."""
    machine.resume()
    deadline = time.monotonic() + 120
    while not machine.was_reset and time.monotonic() < deadline:
        time.sleep(0.001)
