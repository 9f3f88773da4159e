"""The results of reproductions: lines, a Markdown report, the live table of a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TextIO

from pyvmm.commands._fields import spell
from pyvmm.commands._output import LiveTable
from pyvmm.repro.matrix import Cell
from pyvmm.repro.model import CANNOT_TELL, NOT_THERE, THERE
from pyvmm.repro.runner import LOST, ReproResult

STYLES = {NOT_THERE: "green", THERE: "bold red", CANNOT_TELL: "yellow"}
COLUMNS = ("QEMU", "KERNEL", "VARIANT", "VERDICT", "SECONDS")


def lines(result: ReproResult) -> Iterator[str]:
    """Yield the machine, the evidence and the verdict."""
    yield f"machine      {result.machine}"
    yield from _shown(result)
    yield ""
    yield from verdict(result)


def verdict(result: ReproResult) -> Iterator[str]:
    """Yield the verdict and its reasons."""
    finding = result.finding
    yield finding.verdict
    for sentence in finding.why:
        yield f"  {spell(sentence)}"
    if finding.advice:
        yield f"  hint: {spell(finding.advice)}"


def markdown(result: ReproResult) -> str:
    """Return the Markdown report."""
    job, finding = result.job, result.finding
    settings = [f"- {name}: {value}" for name, value in job.settings.items()]
    parts = [
        f"# {job.reproduction.name}: {finding.verdict}",
        job.reproduction.title,
        "\n".join(f"- {spell(sentence)}" for sentence in finding.why),
        f"Machine: {result.machine}",
        "## Settings",
        "\n".join([*settings, f"- seed: {job.seed}"]),
        "## What was seen",
        "```\n" + "\n".join(_shown(result)) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(result: ReproResult) -> Iterator[str]:
    if LOST not in result.evidence:
        yield from result.job.reproduction.show(result.job.settings, result.evidence)


class MatrixTable(LiveTable):
    """The state of a matrix's runs."""

    def __init__(self, cells: Sequence[Cell], stream: TextIO) -> None:
        super().__init__(stream, COLUMNS, wrapping=COLUMNS)
        self._cells = cells
        self._running: Cell | None = None

    def begun(self, cell: Cell) -> None:
        """Show a run as running."""
        self._running = cell
        self.refresh()

    def finished(self, cell: Cell) -> None:
        """Show a run's verdict."""
        self._running = None
        self.refresh()
        text = f"{cell.verdict:26} {cell.seconds:6.1f} s  QEMU {cell.model}, Linux {cell.kernel}"
        self.print_line(f"{text}, {cell.variant}".rstrip(", "))

    def rows(self) -> Iterator[Sequence[str]]:
        """Yield the cells of every run."""
        for cell in self._cells:
            state, style = self._state(cell)
            seconds = f"{cell.seconds:.1f}" if cell.result is not None else ""
            yield cell.model, cell.kernel, cell.variant, f"[{style}]{state}[/]", seconds

    def _state(self, cell: Cell) -> tuple[str, str]:
        if cell.result is not None:
            return cell.verdict, STYLES[cell.result.finding.code]
        return ("running", "cyan") if cell is self._running else ("waiting", "dim")
