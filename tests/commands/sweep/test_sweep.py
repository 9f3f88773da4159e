"""`pyvmm sweep`: options, table, reports and exit codes, with fake guests."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from pyvmm import cli
from pyvmm.sweep import work
from tests.sweep import fake as fake_pyvmm
from tests.tty import Terminal

Capture = pytest.CaptureFixture[str]

ROOT = str(Path(__file__).parents[3])
EACH = ("--sve-vls-each", "all", "--host", "emulated", "-j", "2")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let a fake pyvmm do the runs, in a directory of the test's."""
    monkeypatch.setattr(work, "COMMAND", fake_pyvmm.COMMAND)
    monkeypatch.chdir(tmp_path)


def sweep(capsys: Capture, *arguments: str) -> tuple[int, Any]:
    """Run a sweep; return its exit code and its JSON document."""
    code = cli.main(["sweep", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_sweep_prints_a_line_for_each_set_and_a_summary(capsys: Capture) -> None:
    code = cli.main(["sweep", "hello", *EACH])

    *lines, machine, summary = capsys.readouterr().out.splitlines()
    assert code == 0
    assert sorted(line.rpartition(": ")[2] for line in lines) == [
        "guest at 128", "guest at 128,256", "guest at 128,256,512"
    ]  # fmt: skip
    assert all(line.startswith("passed ") for line in lines)
    assert machine == "kernel=6.1 cpu=max,sve2048=on: Blade 7, Linux 6.12.0"
    assert summary == "3 runs: 3 passed"


def test_every_combination_is_run(capsys: Capture) -> None:
    code, document = sweep(
        capsys, "hello", "--sve-vls-each", "none;128", "-c", "1,2", "--host-kernel", "6.1,6.12",
        "--host-cpu", "max", "--host-cpu", "max,sve384=off",
    )  # fmt: skip

    assert code == 0
    assert len(document["hosts"]) == 4
    assert {(run["host"], run["cpus"], tuple(run["set"])) for run in document["runs"]} == {
        (f"kernel={kernel} cpu={cpu}", cpus, vls)
        for kernel in ("6.1", "6.12")
        for cpu in ("max", "max,sve384=off")
        for cpus in (1, 2)
        for vls in ((), (128,))
    }


def test_models_are_combined_with_kernels_and_take_single_options(capsys: Capture) -> None:
    code, document = sweep(
        capsys, "hello", "--sve-vls-each", "none", "--host-model", "gicv2,a64fx", "--host-kernel",
        "6.12", "--host-qemu", "11",
    )  # fmt: skip

    assert code == 0
    assert [run["host"] for run in document["runs"]] == [
        "kernel=6.12 cpu=max,sve2048=on machine=gic-version=2", "kernel=6.12 cpu=a64fx",
    ]  # fmt: skip
    command = document["runs"][1]["command"]
    for word in ("--host-qemu=11", "--host-cpu=a64fx", "--host-machine=", "--host-append="):
        assert word in command.split()


def test_options_after_dashes_go_to_each_run(capsys: Capture) -> None:
    _, document = sweep(capsys, "hello", "--sve-vls-each", "128", "-p", "a b", "--", "-m", "64")

    assert document["runs"][0]["command"].endswith("--params 'a b' -m 64 -- hello")


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("exit9@128", 1),
        ("exit2", 1),
        ("wrong", 2),
        ("lacking@128", 3),
        ("hang@128", 1),
        ("hello", 0),
    ],
)
def test_exit_code_is_that_of_the_failure(image: str, code: int, capsys: Capture) -> None:
    assert cli.main(["sweep", image, *EACH, "--timeout", "0.5"]) == code


def test_logs_and_junit_are_written(capsys: Capture) -> None:
    code = cli.main(["sweep", "exit9@128", *EACH, "--logs", "some/logs", "--junit", "out.xml"])

    logs = sorted(Path("some/logs").iterdir())
    assert code == 1
    assert [log.name[:3] for log in logs] == ["001", "002", "003"]
    assert "[failed: exit 9 after " in logs[0].read_text()
    suite = ET.parse("out.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")


def test_first_failure_ends_the_sweep(capsys: Capture) -> None:
    code, document = sweep(
        capsys, "exit9@128@hang", "--sve-vls-each", "all", "-j", "1", "--fail-fast"
    )

    assert code == 1
    assert document["counts"]["failed"] == 1
    assert document["counts"]["not finished"] == 2


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signal_reports_finished_runs(number: int, code: int, capsys: Capture) -> None:
    def interrupt() -> None:
        while not [*Path("logs").glob("001-*.log")]:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = cli.main(
        ["sweep", "hang@128,256", "--sve-vls-each", "all", "-j", "1", "--logs", "logs",
         "--junit", "out.xml"]
    )  # fmt: skip
    thread.join()

    suite = ET.parse("out.xml").getroot()[0]
    assert done == code
    assert (suite.get("tests"), suite.get("skipped")) == ("3", "2")
    assert len([*Path("logs").iterdir()]) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "3 runs: 1 passed, 2 not finished"


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--sve-vls-each", "16,32"], "bytes, as prctl and vlset take them", 2),
        ([], "--sve-vls-each is missing", 2),
        (["--sve-vls-each", "128,512"], "256 is left out", 3),
        (["--sve-vls-each", "all", "--cpus", "none"], "--cpus none: not a number", 2),
        (["--sve-vls-each", "all", "--timeout", "0"], "needs a time above 0 s", 2),
        (["--sve-vls-each", "all", "--host-kernel", "4.4"], "no Debian suite that pyvmm knows", 2),
        (["--sve-vls-each", "all", "--host-cpu", "none"], "no such CPU", 3),
        (["--sve-vls-each", "all", "--logs", "/dev/null/x"], "--logs /dev/null/x", 2),
        (["--sve-vls-each", "all", "--", "--sve-max-vl=256"], "--sve-max-vl after --", 2),
        (["--sve-vls-each", "all", "--", "-m", "64", "-c", "2"], "--cpus after --", 2),
        (["--sve-vls-each", "all", "--", "-vc2"], "--cpus after --", 2),
        (["--sve-vls-each", "all", "--", "-iinitrd.img"], "--initrd after --", 2),
        (["--sve-vls-each", "all", "--", "--host-append=x"], "--host-append after --", 2),
        (["--sve-vls-each", "all", "--", "--smp", "2"], "No such option", 2),
        (["--sve-vls-each", "all", "--", "-v", "exit"], "exit after --: a sweep has one image", 2),
        (["--sve-vls-each", "all", "--scheduler", "tcp://x:1", "-j", "1"], "--jobs is for", 2),
    ],
)
def test_invalid_sweep_is_refused_before_any_run(
    arguments: list[str], message: str, code: int, capsys: Capture
) -> None:
    done = cli.main(["sweep", "hello", *arguments])

    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert done == code


def test_missing_dask_client_is_an_error_with_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    Path("guest").touch()

    code = cli.main(["sweep", "guest", "--sve-vls-each", "128", "--scheduler", "tcp://x:1"])

    assert code == 3
    assert "hint: pip install 'pyvmm-arm64[dask]'" in capsys.readouterr().err


def typed(*arguments: str) -> list[str]:
    """Return the command line of a sweep whose runs a fake pyvmm does."""
    script = (
        "import sys; from pyvmm import cli; from pyvmm.sweep import work;"
        "from tests.sweep import fake as fake_pyvmm; work.COMMAND = fake_pyvmm.COMMAND;"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    return [sys.executable, "-P", "-c", script, "sweep", *arguments]


def test_table_on_a_terminal_is_live_and_complete_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)

    with Terminal() as terminal:
        process = terminal.start(typed("hang@128", *EACH, "--timeout", "2"))
        terminal.expect(b"running")
        terminal.expect(b"timed out")
        code = terminal.wait(process)

    assert code == 1
    assert b"3 runs: 2 passed, 1 timed out" in terminal.shown


def test_ctrl_c_marks_runs_as_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)

    with Terminal() as terminal:
        process = terminal.start(typed("hang", *EACH))
        terminal.expect(b"running")
        terminal.type(b"\x03")
        code = terminal.wait(process)

    assert code == 130
    assert b"3 runs: 3 not finished" in terminal.shown


def test_control_characters_of_a_guest_are_escaped(capsys: Capture) -> None:
    Path("cat").write_text("\x1b[2J[bold]\x07")

    cli.main(["sweep", "cat", "--sve-vls-each", "128"])

    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\u001b[2J[bold]\\u0007" in shown
