"""A sweep for people to look at: a live table on a terminal, a line for each result elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

import click

from pyvmm.sweep.drive import Result, Verdict
from pyvmm.sweep.plan import Run, host_name

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

STYLES = {
    Verdict.PASSED: "green",
    Verdict.FAILED: "bold red",
    Verdict.TIMEOUT: "bold red",
    Verdict.LACKING: "yellow",
    Verdict.REFUSED: "yellow",
    Verdict.BROKEN: "bold red",
    Verdict.STOPPED: "yellow",
}
WAITING = ("waiting", "dim")
RUNNING = ("running", "cyan")


class Board:
    """Shows a sweep on a stream as it goes on."""

    def __init__(self, runs: Sequence[Run], stream: TextIO) -> None:
        self._runs = runs
        self._stream = stream
        self._started: dict[int, float] = {}
        self._results: dict[int, Result] = {}
        self._live: Live | None = None
        self._several_cpus = len({run.cpus for run in runs}) > 1
        self._several_hosts = len({run.where for run in runs}) > 1

    def showing(self) -> AbstractContextManager[object]:
        """The time in which the table is live, where the stream is a terminal."""
        if not self._stream.isatty():
            return nullcontext()
        from rich.console import Console
        from rich.live import Live

        self._live = Live(self._table(), console=Console(file=self._stream), auto_refresh=False)
        return self._live

    def finished(self, result: Result) -> None:
        """Take a result in; elsewhere than on a terminal, this is its line."""
        self._results[result.run.number] = result
        if self._live is None:
            click.echo(line(result), file=self._stream)

    def turned(self, running: set[int]) -> None:
        """Take in what runs, and show the table as it is now."""
        for number in running:
            self._started.setdefault(number, time.monotonic())
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table

        shown = {"VCPUS": self._several_cpus, "HOST": self._several_hosts}
        columns = ["SET", "VCPUS", "HOST", "RESULT", "SECONDS", "LAST LINE, OR PROBLEM"]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            if shown.get(column, True):
                table.add_column(
                    column,
                    justify="right" if column in ("SECONDS", "VCPUS") else "left",
                    no_wrap=column != "SET",
                )
        for run in self._runs:
            cells = dict(zip(columns, self._cells(run), strict=True))
            table.add_row(*(cells[c] for c in columns if shown.get(c, True)))
        return table

    def _cells(self, run: Run) -> list[str]:
        from rich.markup import escape

        result = self._results.get(run.number)
        state, style = self._state(run, result)
        seconds, said = "", ""
        if result is not None:
            said = escape(printable(remark(result)))
            if result.outcome is not None:
                seconds = f"{result.outcome.seconds:.1f}"
        elif run.number in self._started:
            seconds = f"{time.monotonic() - self._started[run.number]:.0f}"
        cpus = "" if run.cpus is None else str(run.cpus)
        host = escape(host_name(run.where))
        return [short(run), cpus, host, f"[{style}]{state}[/]", seconds, said]

    def _state(self, run: Run, result: Result | None) -> tuple[str, str]:
        if result is not None:
            return result.verdict, STYLES[result.verdict]
        return RUNNING if run.number in self._started else WAITING


def line(result: Result) -> str:
    """A result in a line."""
    seconds = "" if result.outcome is None else f"{result.outcome.seconds:.1f} s"
    return f"{result.verdict:12} {seconds:>8}  {result.run.name}: {printable(remark(result))}"


def remark(result: Result) -> str:
    """What there is to say: the guest's last line, or what went wrong."""
    if result.verdict is Verdict.PASSED:
        return result.said
    return f"{result.problem}; {result.said}" if result.said else result.problem


def short(run: Run) -> str:
    """A run's set, where there is little room: what is between its ends is left out."""
    lengths = sorted(run.vls)
    if len(lengths) > 4 and lengths == [*range(128, lengths[-1] + 1, 128)]:
        return f"{lengths[0]},{lengths[1]},...,{lengths[-1]}"
    return run.lengths


def printable(text: str) -> str:
    """Text of a guest's without what a terminal would act upon."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
