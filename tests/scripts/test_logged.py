"""scripts/logged.sh writes a step's output to a log, and shows the end of it on failure."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/logged.sh"
PAGES = 'for n in $(seq 30); do echo "line $n"; done; echo "to stderr" >&2; exit 7'


def logged(log: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", SCRIPT, log, "building the thing", *command], capture_output=True, text=True
    )


def test_step_that_succeeds_prints_nothing(tmp_path: Path) -> None:
    done = logged(tmp_path / "deep/my log", "sh", "-c", 'echo "$0"; echo warning >&2', "a b")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "deep/my log").read_text() == "a b\nwarning\n"


def test_reason_is_shown_without_pips_frame(tmp_path: Path) -> None:
    frame = (
        "      [end of output]",
        "  ",
        "  note: This error originates from a subprocess, and is likely not a problem with pip.",
        "error: subprocess-exited-with-error",
        "x pip subprocess to install build dependencies did not run successfully.",
        "│ exit code: 1",
        "╰─> See above for output.",
    )
    script = 'echo "ERROR: no such version"; printf "%s\\n" "$@"; exit 1'

    done = logged(tmp_path / "log", "sh", "-c", script, "sh", *frame, *frame)

    _, *lines, _ = done.stderr.splitlines()
    assert lines == ["    ERROR: no such version"]


def test_step_that_fails_shows_its_last_lines_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"

    done = logged(log, "sh", "-c", PAGES)

    first, *lines, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (7, "")
    assert first == "pyvmm: building the thing failed:"
    assert lines == [*(f"    line {number}" for number in range(22, 31)), "    to stderr"]
    assert last == f"  log: {log}"
    assert len(log.read_text().splitlines()) == 31
