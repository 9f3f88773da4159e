"""Running hosts, which are known by the lock that QEMU holds until it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.base.dirs import runtime_dir, try_lock
from pyvmm.errors import HostError
from pyvmm.host import running
from pyvmm.host.running import Running, all_running, last_output, running_at
from tests.host.conftest import python

# In place of QEMU: holds the lock argv[1]/alive, inherited as QEMU does, and does nothing else.
HOST = """
import sys, time, signal
from pathlib import Path
from pyvmm.base.dirs import try_lock
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
lock = try_lock(Path(sys.argv[1]) / "alive")
print("up", flush=True)
time.sleep(600)
"""


@contextmanager
def host(name: str, *how: str, about: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds a directory's lock as a host does."""
    sockets = runtime_dir() / name
    sockets.mkdir()
    with python(HOST, str(sockets), *how) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (sockets / "pid").write_text(f"{process.pid}\n")
        if about:
            facts = {
                "pid": process.pid,
                "start_id": "abc",
                "qemu": "7.2",
                "settings": {"cpu": "max"},
            }
            (sockets / "about.json").write_text(json.dumps(facts))
        try:
            yield process
        finally:
            process.kill()


def found(name: str) -> Running:
    at = running_at(runtime_dir() / name)
    assert at is not None
    return at


def test_host_runs_exactly_while_its_lock_is_held() -> None:
    with host("one") as process:
        assert found("one").pid == process.pid
        assert found("one").description == "QEMU 7.2 (TCG), -cpu max"

        process.kill()
        process.wait()

        assert running_at(runtime_dir() / "one") is None


def test_host_is_not_running_before_it_is_published() -> None:
    with host("one", about=False):
        assert running_at(runtime_dir() / "one") is None


def test_leftover_directory_is_no_host() -> None:
    sockets = runtime_dir() / "stale"
    sockets.mkdir()
    (sockets / "about.json").write_text(json.dumps({"pid": os.getpid(), "start_id": "abc"}))

    assert running_at(sockets) is None
    assert running_at(runtime_dir() / "nothing") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 1}'])
def test_damaged_description_is_no_host(text: str) -> None:
    with host("one"):
        (runtime_dir() / "one/about.json").write_text(text)

        assert running_at(runtime_dir() / "one") is None


def test_directory_under_removal_is_no_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sockets = runtime_dir() / "going"
    monkeypatch.setattr(json, "loads", lambda text: {"pid": 1, "start_id": "abc"})
    sockets.mkdir()
    (sockets / "about.json").touch()
    read_text = Path.read_text

    def read_and_lose(path: Path) -> str:
        text = read_text(path)
        path.unlink()
        path.parent.rmdir()
        return text

    monkeypatch.setattr(Path, "read_text", read_and_lose)

    assert running_at(sockets) is None


def test_all_running_yields_the_hosts_that_are_alive() -> None:
    with host("a"), host("b"), host("c") as gone:
        gone.kill()
        gone.wait()

        assert [r.path.name for r in all_running()] == ["a", "b"]


def test_stop_ends_a_host_and_removes_its_directory() -> None:
    with host("one") as process:
        running.stop(found("one"))

        assert process.wait(120) == -15
        assert not (runtime_dir() / "one").exists()


def test_stop_ends_a_host_whose_process_is_stopped() -> None:
    with host("one") as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert found("one").is_stopped

        running.stop(found("one"))

        assert process.wait(120) == -15


def test_stop_reports_a_host_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "STOP_S", 0.2)
    with host("one", "stubborn") as process:
        with pytest.raises(HostError, match=f"process {process.pid}.* does not end") as caught:
            running.stop(found("one"))

        assert caught.value.hint == f"kill -9 {process.pid}"


def test_wait_for_end_returns_when_another_host_has_the_directory() -> None:
    with host("one"):
        earlier = Running(runtime_dir() / "one", "another start", 1, {})

        running.wait_for_end(earlier)


def test_sessions_counts_the_ports_in_use() -> None:
    with host("one"):
        locks = [try_lock(runtime_dir() / "one" / f"p{n}.lock") for n in (1, 4)]

        assert running.sessions(found("one")) == 2

        for lock in locks:
            assert lock is not None
            os.close(lock)
        assert running.sessions(found("one")) == 0


def test_end_orphans_ends_no_running_host() -> None:
    with host("up") as up, host("orphan", "stubborn", about=False) as orphan:
        running.end_orphans()

        assert orphan.wait(120) == -9
        with pytest.raises(subprocess.TimeoutExpired):
            up.wait(0.2)


def test_end_orphans_leaves_a_starting_host_alone() -> None:
    with host("starting", about=False) as starting:
        lock = try_lock(runtime_dir() / "starting.start")
        assert lock is not None

        running.end_orphans()

        with pytest.raises(subprocess.TimeoutExpired):
            starting.wait(0.2)
        os.close(lock)


def test_last_words_are_from_qemus_log_or_else_the_console(tmp_path: Path) -> None:
    assert last_output(tmp_path) == "no output"

    (tmp_path / "console.log").write_bytes(b"[    0.0] booting\r\n\xff\n\nKernel panic\n")
    (tmp_path / "qemu.log").write_text("\n")
    assert last_output(tmp_path) == "[    0.0] booting / \ufffd / Kernel panic"

    (tmp_path / "qemu.log").write_text("1\n2\n3\n4\n")
    assert last_output(tmp_path) == "2 / 3 / 4"
