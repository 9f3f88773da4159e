"""A pytest plugin: one line of JSON for each test, written as soon as the test has ended.

`python -m pytest -p tests.reporting --results FILE`.  The line of a test that has begun comes
first. So a run that dies names the test that it died in.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

import pytest


class Outcome(StrEnum):
    """The outcome of a test; an error in collection, set-up or teardown is a failure."""

    BEGAN = "began"
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Results:
    """The file of results."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", buffering=1)
        self._outcome = Outcome.PASSED
        self._reason = ""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Write that a test begins."""
        self._outcome, self._reason = Outcome.PASSED, ""
        self._write(nodeid, Outcome.BEGAN)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst outcome of set-up, test and teardown."""
        if report.failed:
            self._outcome, self._reason = Outcome.FAILED, ""
        elif report.skipped and self._outcome != Outcome.FAILED:
            self._outcome, self._reason = Outcome.SKIPPED, _why_skipped(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Write the outcome of a test."""
        self._write(nodeid, self._outcome, self._reason)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write the files that could not be collected, or skip all their tests."""
        if report.failed:
            self._write(report.nodeid, Outcome.FAILED)
        elif report.skipped:
            self._write(report.nodeid, Outcome.SKIPPED, _why_skipped(report))

    def _write(self, test: str, outcome: Outcome, reason: str = "") -> None:
        line = {"test": test, "outcome": outcome, **({"reason": reason} if reason else {})}
        self._file.write(json.dumps(line) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --results."""
    parser.addoption("--results", metavar="FILE", help="write the outcome of each test to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Open the file, if one is given."""
    path = config.getoption("results")
    if path is not None:
        results = Results(Path(path))
        config.pluginmanager.register(results, "pyvmm-results")
        config.add_cleanup(results.close)


def _why_skipped(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the reason of a skip, or of an expected failure."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(getattr(report, "wasxfail", report.longrepr))
