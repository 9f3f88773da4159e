"""Drive a sweep: submit its runs, judge their results, and stop early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from enum import StrEnum
from threading import Event

from pyvmm.base.records import Record
from pyvmm.errors import EXIT_HOST, EXIT_OK, EXIT_TIMEOUT, EXIT_USAGE, HostError, VmmError
from pyvmm.host.settings import HostSettings
from pyvmm.svecheck.probe import Probe
from pyvmm.sweep.crew import Crew
from pyvmm.sweep.plan import Run
from pyvmm.sweep.work import HostQuery, RunOutput, ask, last_words, perform

REFRESH_S = 0.2


class RunVerdict(StrEnum):
    """The verdict on a run."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timed out"
    LACKING = "host lacks"
    REFUSED = "refused"  # the request is invalid on every machine
    BROKEN = "not done"  # the executor failed
    STOPPED = "not finished"


# The verdicts of pyvmm's own exit codes.
_VERDICTS = {
    EXIT_TIMEOUT: RunVerdict.TIMEOUT,
    EXIT_HOST: RunVerdict.LACKING,
    EXIT_USAGE: RunVerdict.REFUSED,
}


class RunResult(Record):
    """A finished run; if it did not pass, ``problem`` is the reason in one line."""

    run: Run
    verdict: RunVerdict
    output: RunOutput | None = None
    problem: str = ""

    @property
    def said(self) -> str:
        """The last line that the guest wrote."""
        text = b"" if self.output is None else self.output.stdout
        return text.decode(errors="replace").rstrip().rpartition("\n")[2].strip()


class Callbacks(Record):
    """Functions to call: for each result, and at intervals for the numbers of the running runs."""

    finished: Callable[[RunResult], None] = lambda result: None
    running: Callable[[set[int]], None] = lambda numbers: None


def ask_hosts(
    queries: Sequence[HostQuery], crew: Crew, interrupted: Event
) -> dict[HostSettings, Probe]:
    """Ask each host for the vector lengths that it gives guests.

    Raises: HostError, UsageError, if a host gives no answer; KeyboardInterrupt.
    """
    futures = {query.where: crew.submit(ask, query) for query in queries}
    waiting = set(futures.values())
    while waiting:
        done, waiting = wait(waiting, REFRESH_S, FIRST_COMPLETED)
        if interrupted.is_set():
            crew.end(waiting)
            raise KeyboardInterrupt
        for future in done:
            _answer(future)
    return {where: _answer(future) for where, future in futures.items()}


def _answer(future: Future[Probe]) -> Probe:
    try:
        return future.result()
    except VmmError:
        raise
    except Exception as error:  # an executor or its worker may raise any
        raise HostError(f"cannot ask the hosts: {type(error).__name__}: {error}") from error


def drive(
    runs: Sequence[Run], crew: Crew, callbacks: Callbacks, interrupted: Event, *, fail_fast: bool
) -> list[RunResult]:
    """Perform the runs; return a result for each, in the order of the plan."""
    futures = {crew.submit(perform, run): run for run in runs}
    results: dict[int, RunResult] = {}
    waiting = set(futures)
    ending = False

    def take(future: Future[RunOutput]) -> None:
        result = judge(futures[future], future)
        results[result.run.number] = result
        callbacks.finished(result)

    while waiting:
        done, waiting = wait(waiting, REFRESH_S, FIRST_COMPLETED)
        for future in done:
            take(future)
        failed = any(result.verdict is not RunVerdict.PASSED for result in results.values())
        if not ending and (interrupted.is_set() or (fail_fast and failed)):
            ending = True
            crew.end(waiting)
            # Some executors do not wake wait() when a future is cancelled.
            for future in [future for future in waiting if future.cancelled()]:
                take(future)
                waiting.remove(future)
        callbacks.running({futures[future].number for future in waiting if future.running()})
    return [results[run.number] for run in runs]


def judge(run: Run, future: Future[RunOutput]) -> RunResult:
    """Return the result of a run whose future is done."""
    try:
        output = future.result()
    except CancelledError:
        return RunResult(run, RunVerdict.STOPPED, problem="it was cancelled")
    except Exception as error:  # an executor or its worker may raise any
        return RunResult(run, RunVerdict.BROKEN, problem=f"{type(error).__name__}: {error}")
    if output.stopped:
        return RunResult(run, RunVerdict.STOPPED, output, "it was ended")
    if output.code == EXIT_OK:
        return RunResult(run, RunVerdict.PASSED, output)
    message, _ = last_words(output.stderr.decode(errors="replace"))
    # A guest may end with any code, but only pyvmm writes to standard error.
    verdict = _VERDICTS.get(output.code, RunVerdict.FAILED) if message else RunVerdict.FAILED
    return RunResult(run, verdict, output, message or f"exit {output.code}")
