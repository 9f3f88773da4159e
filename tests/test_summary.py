"""The summary of `make test` lists failures, and skips with their reasons."""

from __future__ import annotations

from pathlib import Path

from tests.reporting import Outcome
from tests.summary import PartResult, Result, read_results, summary

UNITS = [
    Result("tests/test_a.py::test_good", Outcome.PASSED),
    Result("tests/test_a.py::test_odd[1 2]", Outcome.FAILED),
    Result("tests/test_a.py::test_gone[x]", Outcome.SKIPPED, "no cluster"),
    Result("tests/test_a.py::test_gone[y]", Outcome.SKIPPED, "no cluster"),
    Result("tests/test_b.py", Outcome.SKIPPED, "no such module"),
]


def part(name: str, results: list[Result], seconds: float = 1.0) -> PartResult:
    again = {result.test: ["python", "-m", name, result.test] for result in results}
    return PartResult(name, results, seconds, again, Path(f"logs/{name}.log"))


def test_last_line_counts_the_tests_of_all_parts() -> None:
    lint = part("lint", [Result("mypy", Outcome.PASSED)])

    *_, last = summary([part("units", UNITS), lint], 3.0)

    assert last == "2 passed, 1 failed, 3 skipped"


def test_failed_test_is_shown_with_the_command_that_repeats_it() -> None:
    lines = [*summary([part("units", UNITS)], 3.0)]

    at = lines.index("  tests/test_a.py::test_odd[1 2]")
    assert lines[at - 1] == "failed in units, whole output in logs/units.log:"
    assert lines[at + 1] == "    again: python -m units 'tests/test_a.py::test_odd[1 2]'"


def test_each_skip_is_listed_below_its_reason() -> None:
    lines = [*summary([part("units", UNITS)], 3.0)]

    at = lines.index("skipped: no cluster")
    assert lines[at + 1] == "  units: tests/test_a.py::test_gone (2 cases)"
    assert lines[at + 2] == "skipped: no such module"
    assert lines[at + 3] == "  units: tests/test_b.py"


def test_table_has_the_counts_and_seconds_of_each_part() -> None:
    rows = [line.split() for line in summary([part("units", UNITS, 61.4)], 3.0)]

    assert rows[:2] == [
        ["part", "passed", "failed", "skipped", "seconds"],
        ["units", "1", "1", "3", "61"],
    ]


def test_pytest_without_results_is_a_failure(tmp_path: Path) -> None:
    (found,) = read_results(tmp_path / "none", -11)

    assert found == Result("pytest", Outcome.FAILED, "ended by signal 11")


def test_results_with_a_truncated_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text('{"test": "t.py::test", "outcome": "began"}\n{"test": "t.py::te')

    assert [r.outcome for r in read_results(path, -9)] == [Outcome.FAILED]


def test_results_with_a_truncated_line_before_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text('{"test": "t.py::te\n{"test": "t.py::test", "outcome": "passed"}\n')

    assert [r.outcome for r in read_results(path, 3)] == [Outcome.PASSED, Outcome.FAILED]
