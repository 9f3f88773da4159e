"""Saves and restores of VMs in the emulated host, with files of the user."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import FIRST_S, Pyvmm, message

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(FIRST_S),
    pytest.mark.usefixtures("emulated", "nothing_left"),
]

GUEST = ("sve-snapshot", "-c", "2", "-m", "16", "--sve-vls=128,256", "-p", "patience=10")


def saved_rounds(output: str) -> int:
    found = re.search(r"vCPU 0: on rounds=([0-9]+)", output)
    assert found, output
    return int(found[1])


def test_running_vm_is_saved_and_continues_from_its_file(pyvmm: Pyvmm, tmp_path: Path) -> None:
    file = tmp_path / "demo.snap"
    with pyvmm.start("run", *GUEST, "--name", "demo") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"at work\n"

        done = pyvmm("save", "demo", str(file), "--resume", "--json")
        assert done.returncode == 0, done.stderr
        (reply,) = json.loads(done.stdout)["vms"]
        assert reply["bytes_on_disk"] < 1 << 20
        assert file.stat().st_mode & 0o777 == 0o600
        last = pyvmm("save", "demo", str(tmp_path / "last.snap"))
        assert (last.returncode, last.stdout) == (0, ""), last.stderr
        assert "saved, and ended" in last.stderr
        assert running.wait() == 0

    for name in ("demo.snap", "last.snap"):
        again = pyvmm("restore", str(tmp_path / name), "--name", "other", input="sq")
        assert again.returncode == 0, again.stdout + again.stderr
        assert "failures=0" in again.stdout
        assert saved_rounds(again.stdout) > 0


def test_several_vms_continue_from_one_file(pyvmm: Pyvmm, tmp_path: Path) -> None:
    file = tmp_path / "demo.snap"
    begun = pyvmm("run", *GUEST, "--name", "many", "--timeout", "1", "--save-on-exit", str(file))
    assert begun.returncode == 124, begun.stderr

    done = pyvmm("restore", str(file), "--count", "2", "--memory", "lazy", "--timeout", "1")

    assert done.returncode == 124, done.stdout
    said = [line for line in done.stdout.splitlines() if "did not end" in line]
    assert sorted(line.split(":")[0] for line in said) == ["many-1", "many-2"]


def test_save_on_exit_saves_a_vm_that_a_signal_ends(pyvmm: Pyvmm, tmp_path: Path) -> None:
    file = tmp_path / "end.snap"
    with pyvmm.start("run", *GUEST, "--save-on-exit", str(file)) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"at work\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 128 + signal.SIGTERM

    again = pyvmm("restore", str(file), input="q")

    assert again.returncode == 0, again.stdout + again.stderr


def test_save_and_restore_report_why_they_fail(pyvmm: Pyvmm, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("no snapshot\n" * 1000)

    assert "not a pyvmm snapshot" in message(pyvmm("restore", str(junk)))
    nobody = pyvmm("save", "nobody", str(junk))
    assert nobody.returncode == 2
    assert "no VM called nobody is running" in message(nobody)
    with pyvmm.start("run", *GUEST, "--name", "stays") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"at work\n"
        bad = pyvmm("save", "stays", str(tmp_path / "nowhere" / "x"))
        assert bad.returncode == 2
        assert "nowhere" in message(bad)
        assert pyvmm("stop", "-n", "stays").returncode == 0  # it continued
        assert running.wait() == 0


def test_snapshot_opens_a_disk_elsewhere_for_its_own_user_alone(
    pyvmm: Pyvmm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, moved, file = tmp_path / "disk.img", tmp_path / "moved.img", tmp_path / "in/a.snap"
    file.parent.mkdir()
    for path in (disk, moved):
        path.write_bytes(b"mine" * (1 << 18))
    ended = ("--timeout", "1")
    begun = pyvmm("run", *GUEST, "-d", str(disk), *ended, "--save-on-exit", str(file))
    assert begun.returncode == 124, begun.stderr

    own = pyvmm("restore", str(file), *ended)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    refused = pyvmm("restore", str(file), *ended)
    given = pyvmm("restore", str(file), "-d", str(moved), *ended)
    trusted = pyvmm("restore", str(file), "--trust", *ended)

    assert own.returncode == given.returncode == trusted.returncode == 124
    assert f"{file} opens disk {disk}, read-write" in own.stderr
    assert f"{file} opens disk {moved}, read-write" in given.stderr
    assert refused.returncode == 2
    assert f"\n  disk {disk}, read-write\n" in refused.stderr
    assert disk.read_bytes() == moved.read_bytes() == b"mine" * (1 << 18)
