"""The end of a guest whose time is out."""

from __future__ import annotations

import time

import pytest

from pyvmm.errors import TimeoutExpired
from pyvmm.kvm import regs
from tests.machine.conftest import SYSTEM_RESET, Boot, let_reset

pytestmark = pytest.mark.kvm


def test_timeout_ends_a_guest_that_runs_on(boot: Boot) -> None:
    machine = boot("spin", timeout_s=0.3)

    with pytest.raises(TimeoutExpired, match=r"within 0\.3 s"):
        machine.run()


def test_guest_runs_nothing_between_a_save_and_its_timeout(boot: Boot) -> None:
    counted: list[int] = []
    machine = boot("count", timeout_s=0.3)
    machine.before_time_out = lambda: counted.append(machine.vcpus[0].get_one_reg(regs.X(1)))

    with pytest.raises(TimeoutExpired):
        machine.run()

    assert counted == [machine.vcpus[0].get_one_reg(regs.X(1))]


def test_run_whose_time_ran_out_earlier_ends_before_the_guest_starts(boot: Boot) -> None:
    calls: list[str] = []
    machine = boot("spin", timeout_s=2.5)
    machine.before_time_out = lambda: calls.append("before the end")

    with pytest.raises(TimeoutExpired, match=r"within 2\.5 s"):
        machine.run(deadline=time.monotonic())

    assert calls == ["before the end"]
    assert not machine.has_started


def test_run_whose_time_ran_out_reports_the_silent_reset_before_it(boot: Boot) -> None:
    said: list[str] = []
    before = boot("call", timeout_s=2.5)
    before.vcpus[0].set_one_reg(regs.X(0), SYSTEM_RESET)
    before.resets = 40
    assert before.run() == 0
    machine = boot("spin", timeout_s=2.5, log=said.append)
    machine.follow(before)

    with pytest.raises(TimeoutExpired):
        machine.run(deadline=time.monotonic())

    assert machine.resets == 41
    assert said == ["the guest has printed nothing since reset 40, and resets"]


def test_reset_during_the_look_at_a_timeout_counts_as_a_reset(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --reboot the next machine finds that the time is out."""
    calls: list[str] = []
    machine = boot("call", timeout_s=0.01)
    machine.vcpus[0].set_one_reg(regs.X(0), SYSTEM_RESET)
    machine.before_time_out = lambda: calls.append("before the end")
    monkeypatch.setattr(machine, "say_why", lambda: let_reset(machine))
    machine.pause()

    assert machine.run() == 0

    assert machine.was_reset
    assert calls == []
