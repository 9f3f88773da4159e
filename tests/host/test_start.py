"""Starting a host: saved hosts are checked, and a failed start leaves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pyvmm.base.dirs import runtime_dir, try_lock
from pyvmm.errors import HostError
from pyvmm.host import qemu, saved, start
from pyvmm.host.parts import tools, trees
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running, running_at
from pyvmm.host.settings import LINUX, QEMU, HostSettings
from pyvmm.host.wire import FIRST_PORTS
from tests.host.conftest import add_tree, python, wait_for

QUIET = Progress(quiet=True)


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    """Make a saved host in tmp_path; return its facts."""
    (tmp_path / "memory").write_bytes(b"m" * 100)
    (tmp_path / "state").write_bytes(b"state")
    return {"memory": 100, "state_sha256": hashlib.sha256(b"state").hexdigest()}


def test_saved_host_is_intact_after_its_boot(tmp_path: Path, facts: dict[str, Any]) -> None:
    assert start._intact(tmp_path, facts)


@pytest.mark.parametrize("file", ["memory", "state"])
@pytest.mark.parametrize("change", ["missing", "shorter", "longer"])
def test_saved_host_is_damaged_when_a_file_has_changed(
    file: str, change: str, tmp_path: Path, facts: dict[str, Any]
) -> None:
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if change != "missing":
        (tmp_path / file).write_bytes(content[:-1] if change == "shorter" else content + b"x")

    assert not start._intact(tmp_path, facts)


def test_saved_host_is_damaged_when_its_state_has_changed(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    (tmp_path / "state").write_bytes(b"stale")

    assert not start._intact(tmp_path, facts)


@pytest.mark.parametrize(
    "change", [{"memory": None}, {"memory": "100"}, {"state_sha256": 3}, {"memory": 99}]
)
def test_saved_host_is_damaged_when_its_facts_are_invalid(
    change: dict[str, Any], tmp_path: Path, facts: dict[str, Any]
) -> None:
    assert not start._intact(tmp_path, facts | change)


def test_saved_host_is_damaged_without_facts(tmp_path: Path, facts: dict[str, Any]) -> None:
    del facts["state_sha256"]

    assert not start._intact(tmp_path, facts)
    assert not start._intact(tmp_path, None)


def test_fresh_directory_of_sockets_is_empty_private_and_locked() -> None:
    sockets = runtime_dir() / "host"
    sockets.mkdir()
    (sockets / "p1").touch()

    with start.fresh(sockets):
        assert [p.name for p in sockets.iterdir()] == ["alive"]
        assert sockets.stat().st_mode & 0o777 == 0o700
        assert try_lock(sockets / "alive") is None

    lock = try_lock(sockets / "alive")
    assert lock is not None
    os.close(lock)


def test_fresh_ends_the_qemu_of_a_killed_start() -> None:
    sockets = runtime_dir() / "host"
    sockets.mkdir()
    code = "import sys, time; from pathlib import Path; from pyvmm.base.dirs import try_lock\n"
    code += "lock = try_lock(Path(sys.argv[1])); print(flush=True); time.sleep(600)"
    with python(code, str(sockets / "alive")) as orphan:
        assert orphan.stdout is not None
        orphan.stdout.readline()
        (sockets / "pid").write_text(f"{orphan.pid}\n")

        with start.fresh(sockets):
            assert orphan.wait(120) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_during_a_start_runs_its_cleanup(number: signal.Signals) -> None:
    code = """
import time
from pyvmm.host import start
try:
    with start.signals_unwind():
        print("starting", flush=True)
        for _ in range(60000):  # a signal before a sleep begins is handled after it
            time.sleep(0.01)
finally:
    print("undone", flush=True)
"""
    with python(code) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)

        assert process.stdout.readline() == "undone\n"
        assert process.wait(120) == 128 + number


def test_ignored_signal_stays_ignored_during_a_start() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with start.signals_unwind():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Fake:
    """A saved host with a script as its QEMU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        self.sockets = runtime_dir() / "host"
        directory = saved.directory("host")
        directory.mkdir()
        (directory / "memory").write_bytes(b"memory")
        (directory / "state").write_bytes(b"state")
        digest = hashlib.sha256(b"state").hexdigest()
        facts = {"memory": 6, "state_sha256": digest, "image": "i", "usr": "u", "qemu": "7.2"}
        (directory / "facts.json").write_text(json.dumps(facts))
        tool = tools.Tool(("sh", "-c", script))
        monkeypatch.setattr(tools, "qemu", lambda choice, progress: tool)

    def start(self) -> Running:
        return start.start(HostSettings(), [], self.sockets, QUIET)

    def has_ended(self) -> bool:
        return qemu.ended(int((self.sockets / "pid").read_text()))


def make_sockets(sockets: Path) -> str:
    return f"touch {sockets}/p{FIRST_PORTS}; exec sleep 60"


def test_start_saves_no_host_whose_kernel_is_newer_than_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another command fetches it between the choice of a name and the end of the boot."""
    settings, sockets = HostSettings(kernel="7.2"), runtime_dir() / "host"
    for product, package in ((LINUX, "7.2.12-1"), (QEMU, "1:7.2+dfsg-7")):
        add_tree(product, package, "sid")
    made_of = trees.chosen(settings)
    process = python("import time; time.sleep(60)")

    def boot(*arguments: Any) -> tuple[int, dict[str, Any]]:
        add_tree(LINUX, "7.2.13-1", "sid")
        return process.pid, {}

    monkeypatch.setattr(start, "plan_for", lambda settings, facts, progress: None)
    monkeypatch.setattr(start, "boot", boot)
    monkeypatch.setattr(qemu, "save", lambda sockets, state: pytest.fail("it was saved"))
    with process, pytest.raises(HostError, match="fetched a newer kernel") as caught:
        start.start(settings, made_of, sockets, QUIET)

    assert caught.value.hint == "run the command again"
    assert not saved.directory("host").is_dir()


def test_start_reports_an_old_look_at_a_suite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake(monkeypatch, make_sockets(runtime_dir() / "host"))
    monkeypatch.setattr(qemu, "restore", lambda sockets, state: None)
    trees.remember(trees.SuiteContents("sid", time.time() - 33 * 86400, {}))

    running = start.start(HostSettings(kernel="sid"), [], fake.sockets, Progress())

    os.kill(running.pid, signal.SIGTERM)
    wait_for(fake.has_ended, "QEMU's end")
    said = capsys.readouterr().err
    assert "the list of Debian sid is 33 days old" in said


def test_start_that_fails_leaves_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, make_sockets(runtime_dir() / "host"))

    with pytest.raises(HostError, match="a QMP command to QEMU failed"):
        fake.start()

    wait_for(fake.has_ended, "QEMU's end")
    assert not (fake.sockets / "about.json").exists()


def test_start_interrupted_at_its_last_step_leaves_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(sockets: Path, pid: int, facts: object) -> None:
        raise KeyboardInterrupt

    fake = Fake(monkeypatch, make_sockets(runtime_dir() / "host"))
    monkeypatch.setattr(qemu, "restore", lambda sockets, state: None)
    monkeypatch.setattr(start, "publish", interrupt)

    with pytest.raises(KeyboardInterrupt):
        fake.start()

    wait_for(fake.has_ended, "QEMU's end")


def test_start_quotes_a_qemu_that_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, "echo 'qemu: cannot set up guest memory' >&2; exit 1")

    with pytest.raises(HostError, match="ended at once: qemu: cannot set up guest memory"):
        fake.start()


def test_start_makes_a_damaged_host_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake(monkeypatch, make_sockets(runtime_dir() / "host"))
    (saved.directory("host") / "state").write_bytes(b"stale")
    boots: list[Path] = []
    plan = qemu.QemuPlan(tools.qemu("7.2", QUIET), "7.2", "max", Path("i"), Path("u"))
    monkeypatch.setattr(start, "plan_for", lambda *_: plan)
    monkeypatch.setattr(start, "_cold_boot", lambda *arguments: boots.append(arguments[-1]))
    monkeypatch.setattr(qemu, "restore", lambda sockets, state: None)

    made = start.start(HostSettings(), [], fake.sockets, Progress())

    assert len(boots) == 1
    assert "/hosts/host is damaged: making it again" in capsys.readouterr().err
    os.kill(made.pid, signal.SIGKILL)
    wait_for(lambda: qemu.ended(made.pid), "QEMU's end")


def test_started_host_is_found_running(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, make_sockets(runtime_dir() / "host"))
    monkeypatch.setattr(qemu, "restore", lambda sockets, state: None)

    made = fake.start()

    assert running_at(fake.sockets) == made
    assert made.facts["qemu"] == "7.2"
    os.kill(made.pid, signal.SIGKILL)
    wait_for(lambda: qemu.ended(made.pid), "QEMU's end")
