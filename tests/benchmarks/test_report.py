"""The report of the benchmarks: medians, ratios, and tables that a person can read."""

from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.report import Table
from benchmarks.rows import MEMORY, MILLION, Cell, Row

RESULTS = {
    "ours": [{"spent": 3e6}, {"spent": 5e6}, {"spent": 400e6}],
    "theirs": [{"spent": 10e6}],
    "least": [{"spent": 1e6}],
    "lkvms": [{"spent": 2e6}],
    "memory": [{"rss_kib": 2048.0}],
}
ROW = Row("a start", MILLION, Cell("ours"), Cell("theirs"), Cell("least"))


def test_measured_gives_the_median_of_the_runs_in_the_rows_unit() -> None:
    (row,) = report.measured([ROW], RESULTS, counted=True)

    assert (row["row"], row["unit"], row["runs"]) == ("a start", "million", 3)
    assert (row["pyvmm"], row["peer"], row["floor"]) == (5, 10, 1)
    assert row["ratio"] == 0.5
    assert row["plain"] is None


def test_measured_names_units_of_time_when_time_was_measured() -> None:
    (row,) = report.measured([ROW], RESULTS, counted=False)

    assert row["unit"] == "ms"


def test_measured_leaves_out_rows_without_a_result_of_pyvmm() -> None:
    absent = Row("never run", MILLION, Cell("nothing"), Cell("theirs"))
    other = Row("not found", MILLION, Cell("ours", "rss_kib"))

    assert report.measured([absent, other], RESULTS, counted=True) == []


def test_measured_without_a_peer_has_no_ratio() -> None:
    row = Row("memory", MEMORY, Cell("memory", "rss_kib"), Cell("nothing", "rss_kib"))

    (found,) = report.measured([row], RESULTS, counted=True)

    assert (found["pyvmm"], found["peer"], found["ratio"]) == (2, None, None)


def test_measured_compares_with_lkvm_where_there_is_one() -> None:
    row = Row("a start", MILLION, Cell("ours"), lkvm=Cell("lkvms"))

    (found,) = report.measured([row], RESULTS, counted=True)
    (alone,) = report.measured([ROW], RESULTS, counted=True)

    assert (found["lkvm"], found["lkvm_ratio"]) == (2, 2.5)
    assert (alone["lkvm"], alone["lkvm_ratio"]) == (None, None)


@pytest.fixture
def table() -> Table:
    return Table("Starts", "By counting.", report.measured([ROW], RESULTS, counted=True))


def test_markdown_shows_only_columns_that_have_numbers(table: Table) -> None:
    text = report.markdown({"machine": "a computer"}, [table])

    assert text.splitlines() == [
        "# pyvmm beside QEMU and lkvm", "",
        "- machine: a computer", "",
        "## Starts", "",
        "By counting.", "",
        "|  | unit | pyvmm | QEMU | pyvmm / QEMU | C floor |",
        "|---|---|--:|--:|--:|--:|",
        "| a start | million | 5 | 10 | 0.5 | 1 |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "shown"), [(12345.6, "12,346"), (99.94, "99.9"), (0.0034, "0.0034"), (0, "0")]
)
def test_markdown_shows_three_digits_or_all_before_the_point(number: float, shown: str) -> None:
    results = {"ours": [{"spent": number * 1e6}]}
    rows = report.measured([Row("a", MILLION, Cell("ours"))], results, counted=True)

    assert (
        report.markdown({}, [Table("T", "", rows)]).splitlines()[-1] == f"| a | million | {shown} |"
    )


def test_document_is_json_with_every_runs_numbers(table: Table) -> None:
    found = json.loads(json.dumps(report.document({"host": "h"}, [table], {"Starts": RESULTS})))

    assert found["schema"] == 3
    assert found["tables"]["Starts"]["rows"][0]["pyvmm"] == 5
    assert found["results"]["Starts"]["ours"] == RESULTS["ours"]
