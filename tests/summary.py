"""The results of a test run: read from the parts' files, and summarised."""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.reporting import Outcome


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one test, or of one check of `make lint`."""

    test: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PartResult:
    """The results of one part; ``again`` has the command that repeats a test, by test."""

    name: str
    results: Sequence[Result]
    seconds: float
    again: Mapping[str, Sequence[str]]  # by test
    log: Path

    def count(self, outcome: Outcome) -> int:
        """Count the tests with that outcome."""
        return sum(result.outcome == outcome for result in self.results)

    @property
    def line(self) -> str:
        """The counts in words."""
        return counts_line([self])


def read_results(path: Path, exit_code: int) -> list[Result]:
    """Read the results of a pytest that has ended with ``exit_code``.

    A test that began and has no end was running when pytest died: it failed.  So did a pytest that
    failed without a failing test, for example because it could not start.  A full disk cuts lines
    short; pytest fails then.
    """
    found: dict[str, Result] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        test, outcome = said["test"], Outcome(said["outcome"])
        found[test] = Result(test, outcome, said.get("reason", ""))
    results = [_as_ended(result) for result in found.values()]
    if exit_code and all(r.outcome != Outcome.FAILED for r in results):
        results.append(Result("pytest", Outcome.FAILED, ended(exit_code)))
    return results


def _as_ended(result: Result) -> Result:
    """Return the result of a test whose pytest has ended."""
    if result.outcome != Outcome.BEGAN:
        return result
    return Result(result.test, Outcome.FAILED, "pytest ended while it ran")


def ended(exit_code: int) -> str:
    """Describe how a process ended."""
    return f"ended by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"


def counts_line(parts: Sequence[PartResult]) -> str:
    """Return the line of counts."""
    total = Counter(result.outcome for part in parts for result in part.results)
    counted = (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED)
    return ", ".join(f"{total[outcome]} {outcome}" for outcome in counted)


def summary(parts: Sequence[PartResult], seconds: float) -> Iterator[str]:
    """Return the lines of the summary; the last one has the counts of all parts."""
    yield f"{'part':8} {'passed':>7} {'failed':>7} {'skipped':>7} {'seconds':>8}"
    for part in parts:
        numbers = [part.count(o) for o in (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED)]
        yield f"{part.name:8} {numbers[0]:7} {numbers[1]:7} {numbers[2]:7} {part.seconds:8.0f}"
    yield from _skips(parts)
    yield from _failures(parts)
    yield f"all parts took {seconds:.0f} s"
    yield counts_line(parts)


def _skips(parts: Sequence[PartResult]) -> Iterator[str]:
    """List each reason once, with its tests; the cases of one test share a line."""
    by_reason: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for part in parts:
        for result in part.results:
            if result.outcome == Outcome.SKIPPED:
                by_reason[result.reason][f"{part.name}: {result.test.partition('[')[0]}"] += 1
    for reason, tests in by_reason.items():
        yield f"skipped: {reason}"
        for test, count in tests.items():
            yield f"  {test}" + (f" ({count} cases)" if count > 1 else "")


def _failures(parts: Sequence[PartResult]) -> Iterator[str]:
    """List each failed test, with the command that repeats it."""
    for part in parts:
        failed = [result for result in part.results if result.outcome == Outcome.FAILED]
        if failed:
            yield f"failed in {part.name}, whole output in {part.log}:"
        for result in failed:
            yield f"  {result.test}" + (f": {result.reason}" if result.reason else "")
            yield f"    again: {shlex.join(part.again[result.test])}"
