"""`make test-pythons`: the Pythons that it finds, and its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/test_pythons.py"
# A Python with its venv and pip in one script, and a test suite.
FAKE = """\
#!/bin/sh
case "$1 $2" in
"-c "*) echo 3.98 3.98.7 ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") {pip} ;;
"-W error") for word; do case $word in --junit-xml=*) echo '{junit}' >"${{word#*=}}" ;; esac; done
    exit {code} ;;
esac
"""
PASSED = '<testcase classname="a" name="passed"/>'
SKIPPED = '<testcase classname="a" name="skipped"><skipped/></testcase>'
FAILED = '<testcase classname="a" name="failed"><failure/></testcase>'
TEARDOWN = (
    '<testcase classname="a" name="ended"/><testcase classname="a" name="ended"><error/></testcase>'
)


@pytest.fixture
def fake(own: Path) -> Path:
    """Return a directory with an installed Python 3.98."""
    (own / "bin").mkdir()
    return own / "bin/python3.98"


def write(fake: Path, cases: str = PASSED, *, code: int = 0, pip: str = "true") -> None:
    write_junit(fake, f"<testsuite>{cases}</testsuite>", code=code, pip=pip)


def write_junit(fake: Path, junit: str, *, code: int = 0, pip: str = "true") -> None:
    fake.write_text(FAKE.format(junit=junit, code=code, pip=pip))
    fake.chmod(0o755)


def run(own: Path, *versions: str) -> subprocess.CompletedProcess[str]:
    path = f"{own / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, SCRIPT, "--into", own / "pythons", *versions],
        env={**os.environ, "HOME": str(own), "PATH": path}, capture_output=True, text=True,
    )  # fmt: skip


def row(output: str, version: str) -> list[str]:
    return next(line.split() for line in output.splitlines() if line.startswith(f"{version} "))


def test_table_has_the_counts_of_each_version(fake: Path, own: Path) -> None:
    write(fake, PASSED + SKIPPED)

    done = run(own, "3.98")

    assert done.returncode == 0, done.stderr
    assert row(done.stdout, "3.98.7")[:5] == ["3.98.7", "PATH", "1", "0", "1"]


def test_failures_and_errors_are_listed_and_fail_the_run(fake: Path, own: Path) -> None:
    write(fake, PASSED + FAILED + TEARDOWN, code=1)

    done = run(own, "3.98")

    assert done.returncode == 1
    assert row(done.stdout, "3.98.7")[2:4] == ["1", "2"]
    assert "failed: a::failed" in done.stdout
    assert "failed: a::ended" in done.stdout


def test_missing_version_is_reported_and_the_next_is_tested(fake: Path, own: Path) -> None:
    write(fake)

    done = run(own, "3.99", "3.98")

    assert done.returncode == 1
    assert "Python 3.99: not installed, and no Debian suite has it; install it" in done.stdout
    assert row(done.stdout, "3.98.7")[2] == "1"


def test_suite_that_dies_is_a_failure(fake: Path, own: Path) -> None:
    write(fake, code=139)

    done = run(own, "3.98")

    assert done.returncode == 1
    assert "Python 3.98.7: pytest ended with 139" in done.stdout


@pytest.mark.parametrize("junit", ["", "<testsuite><testcase"])
def test_incomplete_results_are_a_failure_and_the_next_is_tested(
    junit: str, fake: Path, own: Path
) -> None:
    write_junit(fake, junit)
    write(fake.with_name("python3.97"))
    other = fake.with_name("python3.97")
    other.write_text(other.read_text().replace("3.98", "3.97"))

    done = run(own, "3.98", "3.97")

    assert done.returncode == 1
    assert "Python 3.98.7: pytest ended with 0, its results cannot be read: " in done.stdout
    assert row(done.stdout, "3.97.7")[2] == "1"
    assert done.stderr == ""


def test_failure_to_make_an_environment_shows_the_tools_output(fake: Path, own: Path) -> None:
    write(fake, pip="echo no such distribution; exit 1")

    done = run(own, "3.98")

    assert done.returncode == 1
    assert "failed:\nno such distribution" in done.stdout
