"""Pausing a guest, and its time meanwhile."""

from __future__ import annotations

import threading
import time

import pytest

from pyvmm import layout
from pyvmm.kvm import native, regs
from pyvmm.machine.machine import Machine
from tests.machine.conftest import Boot

pytestmark = pytest.mark.kvm


def test_pause_stops_the_guest_and_resume_continues_it(boot: Boot) -> None:
    machine = boot("count")
    machine.start()

    first = counted_beyond(machine, 0)
    time.sleep(0.1)
    still = machine.vcpus[0].get_one_reg(regs.X(1))
    machine.resume()
    later = counted_beyond(machine, still)

    assert first == still < later


def counted_beyond(machine: Machine, number: int) -> int:
    """Let the guest count past a number, and pause it."""
    deadline = time.monotonic() + 120
    while True:
        time.sleep(0.05)
        machine.pause()
        counted = machine.vcpus[0].get_one_reg(regs.X(1))
        if counted > number:
            return counted
        assert time.monotonic() < deadline
        machine.resume()


def virtual_time(machine: Machine) -> int:
    return machine.vcpus[0].get_one_reg(regs.TIMER_CNT)


def test_virtual_time_passes_only_while_the_guest_runs(boot: Boot) -> None:
    machine = boot("count", vcpus=2)
    machine.start()
    began = time.monotonic()
    with machine.paused():
        before = virtual_time(machine)
        time.sleep(2)
    time.sleep(0.1)
    with machine.paused():
        after = virtual_time(machine)
    took = time.monotonic() - began

    assert 0 < (after - before) / native.counter_frequency() <= took - 2


def test_paused_block_keeps_a_paused_guest_paused(boot: Boot) -> None:
    machine = boot("count")
    machine.start()
    machine.pause()

    with machine.paused():
        pass

    assert machine.is_paused
    counted = machine.vcpus[0].get_one_reg(regs.X(1))
    time.sleep(0.1)
    assert machine.vcpus[0].get_one_reg(regs.X(1)) == counted


def test_pause_does_not_wait_for_a_stalled_reader(boot: Boot) -> None:
    stalled = threading.Event()
    released = threading.Event()
    waited: list[bool] = []

    def output(data: bytes) -> None:
        stalled.set()
        waited.append(released.wait(120))

    machine = boot(
        "flood", x1=ord("x"), x2=layout.UART.base, output=output,
        set_blocking=lambda now: released.clear() if now else released.set(),
    )  # fmt: skip
    machine.start()
    assert stalled.wait(120)

    machine.pause()

    assert waited[0]
    assert machine.is_paused
