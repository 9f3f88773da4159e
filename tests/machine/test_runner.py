"""The vCPU threads, with vCPUs that need no KVM."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyvmm.errors import GuestError, HostError
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.machine.runner import Runner

ENOUGH_S = 120.0


class FakeVcpu(Vcpu):
    """A vCPU that runs until it is kicked, like a guest in a loop."""

    def __init__(self, number: int) -> None:
        self.id = number
        self.runs = 0
        self.in_run = threading.Event()
        self._kicked = threading.Event()

    def run(self) -> Any:
        self.runs += 1
        self.in_run.set()
        assert self._kicked.wait(ENOUGH_S), "not kicked"
        self._kicked.clear()
        self.in_run.clear()

    def kick(self) -> None:
        self._kicked.set()


Make = Callable[..., Runner[FakeVcpu]]


@pytest.fixture
def vcpus() -> list[FakeVcpu]:
    return [FakeVcpu(number) for number in range(3)]


@pytest.fixture
def make(vcpus: list[FakeVcpu]) -> Iterator[Make]:
    """Make a runner that is closed after the test."""
    made = []

    def maker(
        step: Callable[[FakeVcpu], None] = FakeVcpu.run,
        on_end: Callable[[], None] = lambda: None,
    ) -> Runner[FakeVcpu]:
        made.append(Runner(vcpus, step, on_end))
        return made[-1]

    yield maker
    for runner in made:
        runner.close()


def ended(runner: Runner[FakeVcpu], timeout_s: float = ENOUGH_S) -> bool:
    """Wait for the runner's end, and return whether it came."""
    readable, _, _ = select.select([runner.ended_fd], [], [], timeout_s)
    return bool(readable)


def test_end_makes_every_thread_leave(make: Make, vcpus: list[FakeVcpu]) -> None:
    runner = make()
    runner.start()
    for vcpu in vcpus:
        assert vcpu.in_run.wait(ENOUGH_S)

    runner.end(7)

    assert ended(runner)
    assert runner.result() == 7


def test_ended_fd_waits_for_the_last_thread(make: Make) -> None:
    slow = threading.Event()

    def step(vcpu: FakeVcpu) -> None:
        if vcpu.id == 2:
            slow.wait(ENOUGH_S)
        else:
            vcpu.run()

    runner = make(step)
    runner.start()
    runner.end(0)
    too_early = ended(runner, 0.1)
    slow.set()

    assert not too_early
    assert ended(runner)


def test_first_result_counts(make: Make) -> None:
    runner = make()
    runner.start()

    runner.end(1)
    runner.end(2)

    assert ended(runner)
    assert runner.result() == 1


def test_on_end_is_called_once(make: Make) -> None:
    calls = []
    runner = make(on_end=lambda: calls.append("end"))
    runner.start()

    runner.end(1)
    runner.end(2)

    assert calls == ["end"]


def test_on_end_releases_a_blocked_step(make: Make) -> None:
    reader = threading.Event()

    def step(vcpu: FakeVcpu) -> None:
        assert reader.wait(ENOUGH_S)

    runner = make(step, on_end=reader.set)
    runner.start()

    runner.end(0)

    assert ended(runner)


@pytest.mark.parametrize("error", [GuestError("crash"), ValueError("bug"), KeyboardInterrupt()])
def test_error_in_a_thread_ends_the_run_and_is_raised(make: Make, error: BaseException) -> None:
    def step(vcpu: FakeVcpu) -> None:
        if vcpu.id == 1:
            raise error
        vcpu.run()

    runner = make(step)
    runner.start()

    assert ended(runner)
    with pytest.raises(type(error)):
        runner.result()


def test_pause_parks_every_vcpu_and_resume_continues_them(
    make: Make, vcpus: list[FakeVcpu]
) -> None:
    runner = make()
    runner.start()
    for vcpu in vcpus:
        assert vcpu.in_run.wait(ENOUGH_S)

    runner.pause()
    parked = [vcpu.runs for vcpu in vcpus]
    idle = not any(vcpu.in_run.is_set() for vcpu in vcpus)
    time.sleep(0.05)
    still = [vcpu.runs for vcpu in vcpus]
    runner.resume()

    assert idle
    assert still == parked
    for vcpu in vcpus:
        assert vcpu.in_run.wait(ENOUGH_S)


def test_repeated_pause_has_no_effect(make: Make, vcpus: list[FakeVcpu]) -> None:
    runner = make()
    runner.start()

    runner.pause()
    runner.pause()
    runner.resume()

    assert vcpus[0].in_run.wait(ENOUGH_S)


def test_paused_run_can_be_ended(make: Make) -> None:
    runner = make()
    runner.start()
    runner.pause()

    runner.end(3)

    assert ended(runner)
    assert runner.result() == 3


def test_pause_before_start_starts_parked(make: Make, vcpus: list[FakeVcpu]) -> None:
    runner = make()
    runner.pause()
    runner.start()
    time.sleep(0.05)
    before = [vcpu.runs for vcpu in vcpus]

    runner.resume()

    assert before == [0, 0, 0]
    assert vcpus[2].in_run.wait(ENOUGH_S)


def test_pause_of_an_ended_run_returns(make: Make) -> None:
    runner = make()
    runner.start()
    runner.end(0)

    runner.pause()

    assert ended(runner)


def test_end_before_start_runs_nothing(make: Make, vcpus: list[FakeVcpu]) -> None:
    runner = make()
    runner.end(4)

    runner.start()

    assert ended(runner)
    assert runner.result() == 4
    assert [vcpu.runs for vcpu in vcpus] == [0, 0, 0]


def test_thread_that_cannot_start_ends_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def fail_on_the_second(thread: threading.Thread) -> None:
        if thread.name == "vcpu1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_on_the_second)
    runner = make()

    runner.start()

    assert ended(runner)
    with pytest.raises(HostError, match="cannot start a thread for vcpu1"):
        runner.result()


def test_result_before_the_end_is_a_runtime_error(make: Make) -> None:
    with pytest.raises(RuntimeError, match="has not ended"):
        make().result()


def test_second_start_is_a_runtime_error(make: Make) -> None:
    runner = make()
    runner.start()

    with pytest.raises(RuntimeError, match="started twice"):
        runner.start()


def test_close_ends_a_run_and_can_be_repeated(make: Make, vcpus: list[FakeVcpu]) -> None:
    runner = make()
    runner.start()

    runner.close()
    runner.close()

    assert not any(vcpu.in_run.is_set() for vcpu in vcpus)
