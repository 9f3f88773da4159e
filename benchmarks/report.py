"""The report of all measurements: one JSON document and one Markdown page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.rows import Cell, Row

SCHEMA: Final = 3
COLUMNS: Final = {
    "pyvmm": "pyvmm", "plain": "--no-fast-mmio", "peer": "QEMU", "ratio": "pyvmm / QEMU",
    "lkvm": "lkvm", "lkvm_ratio": "pyvmm / lkvm", "floor": "C floor",
}  # fmt: skip

Results = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one method of measurement, which ``about`` describes."""

    title: str
    about: str
    rows: list[dict[str, Any]]
    counted: bool = False


def value(results: Results, cell: Cell | None, scale: float) -> float | None:
    """Return the median of a cell's results in the row's unit, or None."""
    if cell is None or cell.task not in results:
        return None
    found = [run[cell.value] for run in results[cell.task] if cell.value in run]
    return statistics.median(found) / scale if found else None


def measured(rows: Iterable[Row], results: Results, *, counted: bool) -> list[dict[str, Any]]:
    """Return each row with its numbers, without rows that have none of pyvmm."""
    found = []
    for row in rows:
        unit = row.unit
        ours = value(results, row.ours, unit.scale)
        if ours is None:
            continue
        peer, lkvm = (value(results, cell, unit.scale) for cell in (row.peer, row.lkvm))
        found.append({
            "row": row.title,
            "unit": unit.counted if counted else unit.timed,
            "pyvmm": ours,
            "plain": value(results, row.plain, unit.scale),
            "peer": peer,
            "ratio": ours / peer if peer else None,
            "lkvm": lkvm,
            "lkvm_ratio": ours / lkvm if lkvm else None,
            "floor": value(results, row.floor, unit.scale),
            "runs": len(results[row.ours.task]),
        })  # fmt: skip
    return found


def document(
    about: Mapping[str, str], tables: Sequence[Table], results: Mapping[str, Results]
) -> dict[str, Any]:
    """Return the report for programs; ``results`` has each task's numbers, by kind of host."""
    return {
        "schema": SCHEMA,
        "about": dict(about),
        "tables": {t.title: {"about": t.about, "rows": t.rows} for t in tables},
        "results": results,
    }


def markdown(about: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Return the report for people."""
    lines = ["# pyvmm beside QEMU and lkvm", ""]
    lines += [f"- {name}: {text}" for name, text in about.items()]
    for table in tables:
        lines += ["", f"## {table.title}", "", table.about, "", *_table(table.rows)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows as Markdown, without empty columns."""
    columns = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    names = ["", "unit", *(COLUMNS[key] for key in columns)]
    lines = [f"| {' | '.join(names)} |", f"|---|---|{'--:|' * len(columns)}"]
    for row in rows:
        shown = [row["row"], row["unit"], *(_show(row[key]) for key in columns)]
        lines.append(f"| {' | '.join(shown)} |")
    return lines


def _show(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
