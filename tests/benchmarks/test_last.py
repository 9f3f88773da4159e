"""The figures in the tree: which new figures are worse, and how a run replaces them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import last, rows
from benchmarks.__main__ import COUNTED, TIMED
from benchmarks.report import Table

LAST = {"tables": {"T": {"start": {"unit": "million", "pyvmm": 100.0, "plain": 200.0}}}}


def table(pyvmm: float, plain: float | None = None, *, counted: bool = True, **more: Any) -> Table:
    row = {"row": "start", "unit": "million", "pyvmm": pyvmm, "plain": plain, "peer": None,
           "lkvm": None, **more}  # fmt: skip
    return Table("T", "", [row], counted)


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (table(102.0), []),
        (table(50.0), []),
        (table(104.0), ["start: 104 million, was 100 (+4 %)"]),
        (table(100.0, 210.0), ["start with --no-fast-mmio: 210 million, was 200 (+5 %)"]),
        (table(120.0, counted=False), []),
        (table(140.0, counted=False), ["start: 140 million, was 100 (+40 %)"]),
        (table(104.0, row="a new row"), []),
        (table(200.0, unit=rows.RATE.timed), []),
        (table(50.0, unit=rows.RATE.timed), ["start: 50 MB/s, was 100 (-50 %)"]),
    ],
)
def test_worse_names_figures_beyond_the_limit_of_their_method(new: Table, said: list[str]) -> None:
    assert list(last.worse(LAST, [new])) == said


def test_worse_says_nothing_without_earlier_figures() -> None:
    assert list(last.worse({}, [table(1e9)])) == []


def test_keep_replaces_measured_rows_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last, "FILE", tmp_path / "last.json")
    before: dict[str, Any] = {"tables": {"T": {"boot": {"pyvmm": 7.0}, "start": {"pyvmm": 9.0}}}}

    last.keep(before, {"pyvmm": "v2"}, [table(123.456)])

    kept = last.read()
    assert kept["about"] == {"pyvmm": "v2"}
    assert kept["tables"]["T"] == {
        "boot": {"pyvmm": 7.0}, "start": {"unit": "million", "pyvmm": 123.5},
    }  # fmt: skip


def test_figures_in_the_tree_are_of_rows_that_exist() -> None:
    tables = last.read().get("tables", {})
    counted = [rows.check(), *(part() for part in rows.COUNTED.values())]
    timed = [part() for part in rows.TIMED.values()]

    for title, parts in ((COUNTED, counted), (TIMED, timed)):
        known = {row.title for part in parts for row in part.rows}
        assert set(tables.get(title, {})) <= known
