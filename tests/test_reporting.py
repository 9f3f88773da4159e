"""The plugin writes the result of each test while pytest runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reporting import Outcome
from tests.summary import Result, read_results

ROOT = Path(__file__).resolve().parent.parent


def run(directory: Path, text: str) -> list[Result]:
    """Run a file of tests in a pytest of its own, and read its results."""
    (directory / "test_it.py").write_text(text)
    results = directory / "results"
    command = [sys.executable, "-m", "pytest", "-p", "tests.reporting", "--results", str(results)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command += ["--rootdir", str(directory), "test_it.py"]
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True)
    return read_results(results, done.returncode)


def test_each_test_is_reported_with_its_outcome(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        "import pytest\n"
        "@pytest.fixture\n"
        "def broken():\n"
        "    yield\n"
        "    assert False\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_broken_at_its_end(broken): pass\n"
        "@pytest.mark.skip(reason='no cluster')\n"
        "def test_left_out(): pass\n",
    )

    assert found == [
        Result("test_it.py::test_good", Outcome.PASSED),
        Result("test_it.py::test_bad", Outcome.FAILED),
        Result("test_it.py::test_broken_at_its_end", Outcome.FAILED),
        Result("test_it.py::test_left_out", Outcome.SKIPPED, "no cluster"),
    ]


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        ("import nothing_like_this\n", Outcome.FAILED, ""),
        ("def test_unfinished(:\n", Outcome.FAILED, ""),
        ("import pytest\npytest.importorskip('nothing_like_this')\n", Outcome.SKIPPED, "could not"),
    ],
)
def test_file_that_cannot_be_collected_is_reported(
    tmp_path: Path, text: str, outcome: Outcome, reason: str
) -> None:
    found = run(tmp_path, text)[0]

    assert found.test == "test_it.py"
    assert found.outcome == outcome
    assert reason in found.reason


def test_test_that_kills_pytest_is_reported_as_failed(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        "import os, signal\n"
        "def test_good(): pass\n"
        "def test_deadly(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def test_never_run(): pass\n",
    )

    assert found == [
        Result("test_it.py::test_good", Outcome.PASSED),
        Result("test_it.py::test_deadly", Outcome.FAILED, "pytest ended while it ran"),
    ]


def test_pytest_without_tests_is_a_failure(tmp_path: Path) -> None:
    assert run(tmp_path, "") == [Result("pytest", Outcome.FAILED, "ended with exit code 5")]
