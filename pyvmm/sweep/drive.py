"""Seeing a sweep through: who is waited for, what each result means, when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from enum import StrEnum
from threading import Event

from pyvmm.errors import EXIT_HOST, EXIT_OK, EXIT_TIMEOUT, EXIT_USAGE, HostError, VmmError
from pyvmm.host.settings import HostSettings
from pyvmm.svecheck.probe import Probe
from pyvmm.sweep.crew import Crew
from pyvmm.sweep.plan import Run
from pyvmm.sweep.work import HostQuery, Outcome, ask, last_words, perform

REFRESH_S = 0.2


class Verdict(StrEnum):
    """How a run ended."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timed out"
    LACKING = "host lacks"
    REFUSED = "refused"  # what was asked makes no sense on any machine
    BROKEN = "not done"  # by whoever was to do it
    STOPPED = "not finished"


# What pyvmm's own exit codes mean.
_PYVMMS = {
    EXIT_TIMEOUT: Verdict.TIMEOUT,
    EXIT_HOST: Verdict.LACKING,
    EXIT_USAGE: Verdict.REFUSED,
}


@dataclass(frozen=True, slots=True)
class Result:
    """A run that is over; ``problem`` says in a line why, where it did not pass."""

    run: Run
    verdict: Verdict
    outcome: Outcome | None = None
    problem: str = ""

    @property
    def said(self) -> str:
        """The last line that the guest wrote."""
        text = b"" if self.outcome is None else self.outcome.stdout
        return text.decode(errors="replace").rstrip().rpartition("\n")[2].strip()


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who wants to know: of every result, and from time to time of what runs."""

    finished: Callable[[Result], None] = lambda result: None
    turned: Callable[[set[int]], None] = lambda running: None  # numbers of runs


def ask_hosts(
    queries: Sequence[HostQuery], crew: Crew, interrupted: Event
) -> dict[HostSettings, Probe]:
    """What each host is and gives guests.

    Raises: HostError, UsageError, where one cannot be asked; KeyboardInterrupt.
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
    except Exception as error:  # whatever an executor, or a worker far away, may say
        raise HostError(f"no host can be asked: {type(error).__name__}: {error}") from error


def drive(
    runs: Sequence[Run], crew: Crew, watcher: Watcher, interrupted: Event, *, fail_fast: bool
) -> list[Result]:
    """Do the runs; their results in the order of the plan, also of those that were not begun."""
    futures = {crew.submit(perform, run): run for run in runs}
    results: dict[int, Result] = {}
    waiting = set(futures)
    ending = False

    def take(future: Future[Outcome]) -> None:
        result = judge(futures[future], future)
        results[result.run.number] = result
        watcher.finished(result)

    while waiting:
        done, waiting = wait(waiting, REFRESH_S, FIRST_COMPLETED)
        for future in done:
            take(future)
        failed = any(result.verdict is not Verdict.PASSED for result in results.values())
        if not ending and (interrupted.is_set() or (fail_fast and failed)):
            ending = True
            crew.end(waiting)
            # Not every executor tells wait() of what was cancelled.
            for future in [future for future in waiting if future.cancelled()]:
                take(future)
                waiting.remove(future)
        watcher.turned({futures[future].number for future in waiting if future.running()})
    return [results[run.number] for run in runs]


def judge(run: Run, future: Future[Outcome]) -> Result:
    """What a run's end means."""
    try:
        outcome = future.result()
    except CancelledError:
        return Result(run, Verdict.STOPPED, problem="it was cancelled")
    except Exception as error:  # whatever an executor, or a worker far away, may say
        return Result(run, Verdict.BROKEN, problem=f"{type(error).__name__}: {error}")
    if outcome.stopped:
        return Result(run, Verdict.STOPPED, outcome, "it was ended")
    if outcome.code == EXIT_OK:
        return Result(run, Verdict.PASSED, outcome)
    message, _ = last_words(outcome.stderr.decode(errors="replace"))
    # A guest may end with any code, but only pyvmm writes to standard error.
    verdict = _PYVMMS.get(outcome.code, Verdict.FAILED) if message else Verdict.FAILED
    return Result(run, verdict, outcome, message or f"exit {outcome.code}")
