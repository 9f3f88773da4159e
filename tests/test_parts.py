"""`make test` runs every part, reports each result, and ends its commands."""

from __future__ import annotations

import concurrent.futures
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import parts
from tests.parts import Part, run_everything, run_one

ROOT = Path(__file__).resolve().parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
DEADLINE_S = 120.0
USERS_MARK = re.compile(r"^[^#\n]*pytest\.mark\.e2e\b", re.MULTILINE)
# A file with no unit test.
WHOLE_FILE = re.compile(r"^pytestmark = (\[[^]]*|.*)pytest\.mark\.(e2e|matrix)\b", re.MULTILINE)
# A run of tests that ignores an interruption, with a host that only a signal ends.
DEAF = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from pyvmm.base.dirs import runtime_dir
from tests.host.test_running import HOST
from tests.runtime import own_runtime_dir

signal.signal(signal.SIGINT, signal.SIG_IGN)
with own_runtime_dir("deaf"):
    sockets = runtime_dir() / "one"
    sockets.mkdir()
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(sockets)], stdout=subprocess.PIPE, start_new_session=True
    )
    host.stdout.readline()
    (sockets / "pid").write_text(f"{{host.pid}}\\n")
    facts = {{"pid": host.pid, "start_id": "abc"}}
    (sockets / "about.json").write_text(json.dumps(facts))
    said = f"{{host.pid}}\\n{{os.environ['XDG_RUNTIME_DIR']}}\\n"
    Path({running!r}).write_text(said)
    time.sleep(600)
"""


def check(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_every_part_runs_when_one_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "test_it.py"
    file.write_text("def test_good(): pass\ndef test_bad(): assert 'this' == 'that'\n")
    bad = Part("bad", PYTEST, (str(file),))
    good = [Part(f"good{n}", checks=(check("print('quiet words')"),)) for n in range(3)]

    code = run_everything([bad, *good], tmp_path / "logs")

    said = capsys.readouterr().out
    assert code == 1
    assert said.splitlines()[-1] == "4 passed, 1 failed, 0 skipped"
    assert "'this' == 'that'" in said
    assert "again: " in said
    assert "quiet words" not in said
    assert (tmp_path / "logs/good2.log").read_text() == "quiet words\n"


def test_run_without_failures_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_everything([Part("good", checks=(check(""),))], tmp_path) == 0

    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"


def test_failed_check_is_shown_with_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_everything([Part("lint", checks=(("sh", "-c", "exit 3"),))], tmp_path) == 1

    said = capsys.readouterr().out
    assert "  sh: ended with exit code 3\n    again: sh -c 'exit 3'\n" in said


def test_part_whose_log_cannot_be_written_fails_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.log").mkdir()
    bad = Part("bad", PYTEST)

    assert run_everything([bad, Part("good", checks=(check(""),))], tmp_path) == 1

    said = capsys.readouterr().out
    assert f"  bad: {tmp_path}/bad.log: Is a directory\n    again: make test-bad\n" in said
    assert said.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"


def test_part_whose_output_is_cut_short_fails_and_the_others_run(tmp_path: Path) -> None:
    """A limit of the size of files acts like a full disk."""
    file = tmp_path / "test_it.py"
    file.write_text("def test_good(): pass\n" * 1000)
    run = (
        "import resource, sys; from pathlib import Path; from tests.parts import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"bad = Part('bad', {PYTEST!r}, ({str(file)!r},))\n"
        f"good = Part('good', checks=(('true',),))\n"
        f"sys.exit(run_everything([bad, good], Path({str(tmp_path)!r})))"
    )

    done = subprocess.run(check(run), cwd=ROOT, capture_output=True, text=True)

    assert f"failed in bad, whole output in {tmp_path}/bad.log:\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 passed, ")
    assert (done.returncode, done.stderr) == (1, "")


def test_command_that_cannot_be_started_fails_its_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lint = Part("lint", checks=((str(tmp_path / "ruff"),),))

    assert run_everything([lint], tmp_path) == 1

    expected = f"  lint: {tmp_path}/ruff: No such file or directory\n    again: make lint\n"
    assert expected in capsys.readouterr().out


def test_directory_of_logs_that_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "build").write_text("")

    assert run_everything([], tmp_path / "build/logs") == 1

    assert capsys.readouterr().err == f"pyvmm: cannot make {tmp_path}/build/logs: Not a directory\n"


@pytest.mark.parametrize("stderr", [subprocess.PIPE, subprocess.STDOUT])
def test_full_standard_output_ends_no_test(tmp_path: Path, stderr: int) -> None:
    """The summary goes to stderr, if that can be written."""
    ran = tmp_path / "ran"
    run = (
        "import sys; from pathlib import Path; from tests.parts import *\n"
        f"part = Part('good', checks=(('touch', {str(ran)!r}),))\n"
        f"sys.exit(run_everything([part], Path({str(tmp_path)!r})))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(check(run), cwd=ROOT, stdout=full, stderr=stderr, text=True)

    assert ran.exists()
    assert done.returncode == 1
    if stderr == subprocess.PIPE:
        lines = done.stderr.splitlines()
        assert lines[0] == "pyvmm: cannot write to stdout: No space left on device"
        assert lines[-1] == "1 passed, 0 failed, 0 skipped"


def test_results_of_an_earlier_run_are_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "units.jsonl").write_text('{"test": "t.py::test", "outcome": "passed"}\n')

    run_everything([Part("units", ("false",))], tmp_path)

    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_run_ends_its_commands(tmp_path: Path, number: signal.Signals) -> None:
    running = tmp_path / "running"
    run = (
        "import sys; from pathlib import Path; from tests.parts import *\n"
        f"part = Part('slow', checks=(('sh', '-c', 'sleep 600 & echo $! >{running}; wait'),))\n"
        f"sys.exit(run_everything([part], Path({str(tmp_path)!r})))"
    )
    with subprocess.Popen(check(run), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        child = int(wait_for_text(running))

        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 128 + number
    assert said == f"pyvmm: the tests were interrupted by {number.name}\n"
    wait_until_gone(child)


def test_part_that_ignores_an_interruption_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRACE_S is 0 here."""
    running = tmp_path / "running"
    deaf = f"trap '' INT; echo $$ >{running}; while :; do sleep 600; done"
    monkeypatch.setattr(parts, "GRACE_S", 0.0)
    monkeypatch.setattr(concurrent.futures, "as_completed", lambda _: interrupt_when_there(running))

    with pytest.raises(parts.Interrupted):
        parts.run_all([Part("deaf", checks=(("sh", "-c", deaf),))], tmp_path, print)

    wait_until_gone(int(running.read_text()))


def test_killed_part_leaves_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is a process that holds the lock of a host, in a session of its own."""
    running = tmp_path / "running"
    monkeypatch.setattr(parts, "GRACE_S", 0.0)
    monkeypatch.setattr(concurrent.futures, "as_completed", lambda _: interrupt_when_there(running))

    with pytest.raises(parts.Interrupted):
        deaf = check(DEAF.format(running=str(running)))
        parts.run_all([Part("deaf", checks=(deaf,))], tmp_path, print)

    host, directory = running.read_text().splitlines()
    wait_until_gone(int(host))
    assert not Path(directory).exists()


def test_part_of_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_one("unit", []) == 2

    assert "no part unit; parts: e2e, guests, kvm, units, lint" in capsys.readouterr().err


def test_marked_files_are_in_the_directories_that_their_parts_collect() -> None:
    """The parts collect no other files: to import all of them takes long."""
    files = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    users = {path.parent.name for path, text in files.items() if re.search(USERS_MARK, text)}
    apart = [path for path in files if path.parent == ROOT / "tests/e2e"]

    assert users == {"e2e", "guests"}
    assert [path for path in apart if not re.search(WHOLE_FILE, files[path])] == []


def interrupt_when_there(path: Path) -> None:
    wait_for_text(path)
    raise parts.Interrupted(signal.SIGINT)


def wait_for_text(path: Path) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while not (path.exists() and (text := path.read_text()).endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return text


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
