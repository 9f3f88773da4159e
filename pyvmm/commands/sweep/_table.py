"""The runs of a sweep, as a table or line by line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from pyvmm.base.output import printable
from pyvmm.commands._output import LiveTable
from pyvmm.sweep.drive import RunResult, RunVerdict
from pyvmm.sweep.plan import Run, host_name

# The others are "bold red".
STYLES = {
    RunVerdict.PASSED: "green",
    RunVerdict.LACKING: "yellow",
    RunVerdict.REFUSED: "yellow",
    RunVerdict.STOPPED: "yellow",
}
TITLES = ("SET", "VCPUS", "HOST", "RESULT", "SECONDS", "LAST LINE, OR PROBLEM")
WAITING = ("waiting", "dim")
RUNNING = ("running", "cyan")


class SweepTable(LiveTable):
    """The state of a sweep's runs."""

    def __init__(self, runs: Sequence[Run], stream: TextIO) -> None:
        self._runs = runs
        self._started: dict[int, float] = {}
        self._results: dict[int, RunResult] = {}
        self._several_cpus = len({run.cpus for run in runs}) > 1
        self._several_hosts = len({run.where for run in runs}) > 1
        super().__init__(stream, self._shown(TITLES), wrapping=("SET",))  # only a long set wraps

    def finished(self, result: RunResult) -> None:
        """Add a result; if the output is not a terminal, print its line."""
        self._results[result.run.number] = result
        self.print_line(line(result))

    def running(self, numbers: set[int]) -> None:
        """Store the numbers of the runs in progress, and show the table."""
        for number in numbers:
            self._started.setdefault(number, time.monotonic())
        self.refresh()

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield the cells of every run."""
        for run in self._runs:
            yield self._shown(self._cells(run))

    def _shown(self, cells: Sequence[str]) -> list[str]:
        """Leave out the columns in which all runs are the same."""
        left_out = {"VCPUS": not self._several_cpus, "HOST": not self._several_hosts}
        pairs = zip(TITLES, cells, strict=True)
        return [cell for title, cell in pairs if not left_out.get(title, False)]

    def _cells(self, run: Run) -> list[str]:
        from rich.markup import escape

        result = self._results.get(run.number)
        state, style = self._state(run, result)
        seconds, said = "", ""
        if result is not None:
            said = escape(printable(remark(result)))
            if result.output is not None:
                seconds = f"{result.output.seconds:.1f}"
        elif run.number in self._started:
            seconds = f"{time.monotonic() - self._started[run.number]:.0f}"
        cpus = "" if run.cpus is None else str(run.cpus)
        host = escape(host_name(run.where))
        return [short(run), cpus, host, f"[{style}]{state}[/]", seconds, said]

    def _state(self, run: Run, result: RunResult | None) -> tuple[str, str]:
        if result is not None:
            return result.verdict, STYLES.get(result.verdict, "bold red")
        return RUNNING if run.number in self._started else WAITING


def line(result: RunResult) -> str:
    """Return a result's line."""
    seconds = "" if result.output is None else f"{result.output.seconds:.1f} s"
    return f"{result.verdict:12} {seconds:>8}  {result.run.name}: {remark(result)}"


def remark(result: RunResult) -> str:
    """Return the guest's last line, or the problem."""
    if result.verdict is RunVerdict.PASSED:
        return result.said
    return f"{result.problem}; {result.said}" if result.said else result.problem


def short(run: Run) -> str:
    """Return a run's set; leave out the middle of a long one."""
    lengths = sorted(run.vls)
    if len(lengths) > 4 and lengths == [*range(128, lengths[-1] + 1, 128)]:
        return f"{lengths[0]},{lengths[1]},...,{lengths[-1]}"
    return run.lengths
