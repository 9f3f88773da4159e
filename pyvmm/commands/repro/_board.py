"""A matrix for people to look at: a live table on a terminal, a line for each run elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

import click

from pyvmm.repro.matrix import Cell
from pyvmm.repro.model import CANNOT_TELL, NOT_THERE, THERE

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

STYLES = {NOT_THERE: "green", THERE: "bold red", CANNOT_TELL: "yellow"}
COLUMNS = ("QEMU", "KERNEL", "VARIANT", "VERDICT", "SECONDS")


class Board:
    """Shows a matrix on a stream as it goes on."""

    def __init__(self, cells: Sequence[Cell], stream: TextIO) -> None:
        self._cells = cells
        self._stream = stream
        self._running: Cell | None = None
        self._live: Live | None = None

    def showing(self) -> AbstractContextManager[object]:
        """The time in which the table is live, where the stream is a terminal."""
        if not self._stream.isatty():
            return nullcontext()
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream)
        self._live = Live(self._table(), console=console, auto_refresh=False)
        return self._live

    def begun(self, cell: Cell) -> None:
        """Take in what runs now."""
        self._running = cell
        self._show()

    def finished(self, cell: Cell) -> None:
        """Take in what has ended; elsewhere than on a terminal, this is its line."""
        self._running = None
        self._show()
        if self._live is None:
            text = (
                f"{cell.verdict:26} {cell.seconds:6.1f} s  QEMU {cell.model}, Linux {cell.kernel}"
            )
            click.echo(f"{text}, {cell.variant}".rstrip(", "), file=self._stream)

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in COLUMNS:
            table.add_column(column, justify="right" if column == "SECONDS" else "left")
        for cell in self._cells:
            state, style = self._state(cell)
            seconds = f"{cell.seconds:.1f}" if cell.result is not None else ""
            table.add_row(cell.model, cell.kernel, cell.variant, f"[{style}]{state}[/]", seconds)
        return table

    def _state(self, cell: Cell) -> tuple[str, str]:
        if cell.result is not None:
            return cell.verdict, STYLES[cell.result.finding.code]
        return ("running", "cyan") if cell is self._running else ("waiting", "dim")
