"""The output of commands: JSON, lines, tables that are live on a terminal."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import click

from pyvmm.base.output import printable
from pyvmm.cli import echo

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.live import Live
    from rich.table import Table

NUMBERS = ("SECONDS", "VCPUS")  # columns that are aligned to the right


class LiveTable:
    """The state of several runs: a live table on a terminal, a line for each result elsewhere.

    A subclass defines ``rows()``.  ``wrapping`` are the titles of columns whose cells wrap.
    """

    def __init__(self, stream: TextIO, titles: Iterable[str], wrapping: Container[str]) -> None:
        self._stream = stream
        self._titles = titles
        self._wrapping = wrapping
        self._live: Live | None = None

    def rows(self) -> Iterable[Sequence[str]]:
        """Return the cells of every run, as rich's markup."""
        raise NotImplementedError

    def showing(self) -> AbstractContextManager[object]:
        """Show the table while the block runs, where the stream is a terminal."""
        if not self._stream.isatty():
            return nullcontext()
        from rich.console import Console
        from rich.live import Live

        self._live = Live(self._table(), console=Console(file=self._stream), auto_refresh=False)
        return self._live

    def refresh(self) -> None:
        """Show the table as it is now."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def print_line(self, text: str) -> None:
        """Print a result where there is no live table."""
        if self._live is None:
            click.echo(printable(text), file=self._stream)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in self._titles:
            justify: JustifyMethod = "right" if title in NUMBERS else "left"
            table.add_column(title, justify=justify, no_wrap=title not in self._wrapping)
        for row in self.rows():
            table.add_row(*map(printable, row))
        return table


def show(as_json: bool, document: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Print the document as JSON, or the lines."""
    if as_json:
        import json

        click.echo(json.dumps(document, indent=2))
        return
    for line in lines:
        echo(line)


def counted(count: int, noun: str) -> str:
    """Write a number of things: 1 page, 2 pages."""
    return f"{count} {noun}" + "s" * (count != 1)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines whose columns are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
