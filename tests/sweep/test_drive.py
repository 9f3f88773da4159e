"""Sweeps with threads, and with an executor that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from pyvmm.commands.sweep._line import command, query
from pyvmm.errors import HostError
from pyvmm.host.settings import HostSettings
from pyvmm.sweep.crew import Crew, local
from pyvmm.sweep.drive import Callbacks, RunResult, RunVerdict, ask_hosts, drive
from pyvmm.sweep.plan import Guest, Run, plan
from tests.sweep.fake import POWERS, PROBE

pytestmark = pytest.mark.usefixtures("fake")

HERE = HostSettings()


def runs(image: str, timeout_s: float | None = None) -> list[Run]:
    return plan(Guest(image=image, timeout_s=timeout_s), [None], [None], {HERE: POWERS}, command)


def driven(image: str, *, jobs: int = 2, fail_fast: bool = False, **guest: Any) -> list[RunResult]:
    with local(jobs) as crew:
        return drive(
            runs(image, **guest), crew, Callbacks(), threading.Event(), fail_fast=fail_fast
        )


def test_results_are_in_the_order_of_the_plan() -> None:
    results = driven("exit5@128,256", jobs=3)

    assert [result.verdict for result in results] == [
        RunVerdict.PASSED, RunVerdict.FAILED, RunVerdict.PASSED
    ]  # fmt: skip
    assert [result.said for result in results] == [
        "guest at 128", "guest at 128,256", "guest at 128,256,512"
    ]  # fmt: skip
    assert results[1].problem == "exit 5"


def test_timeout_ends_only_the_guest_that_hangs() -> None:
    results = driven("hang@128", timeout_s=0.5)

    assert [result.verdict for result in results] == [
        RunVerdict.TIMEOUT, RunVerdict.PASSED, RunVerdict.PASSED
    ]  # fmt: skip


@pytest.mark.parametrize("code", [2, 3, 124, 130])
def test_guests_exit_code_is_not_read_as_pyvmms(code: int) -> None:
    results = driven(f"exit{code}@128")

    assert results[0].verdict is RunVerdict.FAILED


def test_host_that_lacks_something_has_a_verdict_of_its_own() -> None:
    results = driven("lacking@128")

    assert (results[0].verdict, results[0].problem) == (RunVerdict.LACKING, "the host lacks it")


def test_fail_fast_ends_waiting_and_running_runs() -> None:
    results = driven("exit1@128@hang", jobs=1, fail_fast=True)

    assert [result.verdict for result in results] == [
        RunVerdict.FAILED, RunVerdict.STOPPED, RunVerdict.STOPPED
    ]  # fmt: skip


def test_interruption_keeps_finished_results() -> None:
    interrupted = threading.Event()

    def finished(result: RunResult) -> None:
        interrupted.set()

    with local(1) as crew:
        results = drive(
            runs("hang@128,256"), crew, Callbacks(finished), interrupted, fail_fast=False
        )

    assert [result.verdict for result in results] == [
        RunVerdict.PASSED, RunVerdict.STOPPED, RunVerdict.STOPPED
    ]  # fmt: skip


class Breaking(Executor):
    """An executor that fails every other run, and does not report cancelled futures."""

    def __init__(self) -> None:
        self._pieces = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._pieces += 1
        if self._pieces % 2:
            future.set_exception(ConnectionError("the worker is gone"))
        return future


def test_run_that_its_executor_fails_has_a_result() -> None:
    results = drive(runs("hello"), Crew(Breaking()), Callbacks(), threading.Event(), fail_fast=True)

    assert [result.verdict for result in results] == [
        RunVerdict.BROKEN, RunVerdict.STOPPED, RunVerdict.BROKEN
    ]  # fmt: skip
    assert results[0].problem == "ConnectionError: the worker is gone"


def test_failing_executor_is_a_host_error_when_hosts_are_asked() -> None:
    with pytest.raises(HostError, match="ConnectionError: the worker is gone"):
        ask_hosts([query(HERE)], Crew(Breaking()), threading.Event())


def test_every_host_is_asked() -> None:
    other = HostSettings(cpu="max")

    with local(2) as crew:
        answers = ask_hosts([query(HERE), query(other)], crew, threading.Event())

    assert answers == {HERE: PROBE, other: PROBE}


def test_interruption_while_hosts_are_asked_raises_keyboard_interrupt() -> None:
    interrupted = threading.Event()
    interrupted.set()

    with pytest.raises(KeyboardInterrupt), local(1) as crew:
        ask_hosts([query(HERE)], crew, interrupted)
