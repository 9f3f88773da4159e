"""What was measured, as one JSON document and one Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.rows import Cell, Row

Results = Mapping[str, Sequence[Mapping[str, float]]]


def value(results: Results, cell: Cell | None, scale: float) -> float | None:
    """The median of a cell's results in the row's unit, if there are any."""
    if cell is None or cell.task not in results:
        return None
    found = [run[cell.value] for run in results[cell.task] if cell.value in run]
    return statistics.median(found) / scale if found else None


def measured(rows: Iterable[Row], results: Results) -> list[dict[str, Any]]:
    """Each row with its numbers; those without one of pyvmm's are left out."""
    found = []
    for row in rows:
        ours = value(results, row.ours, row.scale)
        if ours is None:
            continue
        peer = value(results, row.peer, row.scale)
        found.append({
            "row": row.title,
            "unit": row.unit,
            "pyvmm": ours,
            "plain": value(results, row.plain, row.scale),
            "peer": peer,
            "ratio": ours / peer if peer else None,
            "floor": value(results, row.floor, row.scale),
        })  # fmt: skip
    return found


def markdown(about: Mapping[str, str], tables: Mapping[str, list[dict[str, Any]]]) -> str:
    """All of it for people."""
    lines = ["# pyvmm beside QEMU", ""]
    lines += [f"- {name}: {text}" for name, text in about.items()]
    for title, rows in tables.items():
        lines += ["", f"## {title}", "", "| row | unit | pyvmm | --no-fast-mmio | QEMU | ratio | "
                  "C floor |", "|---|---|--:|--:|--:|--:|--:|"]  # fmt: skip
        for row in rows:
            shown = [_show(row[key]) for key in ("pyvmm", "plain", "peer", "ratio", "floor")]
            lines.append(f"| {row['row']} | {row['unit']} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _show(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
