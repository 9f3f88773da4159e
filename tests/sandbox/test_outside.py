"""A file that another process names."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pyvmm.base.files import PRIVATE
from pyvmm.config import Config
from pyvmm.errors import HostError, UsageError, VmmError
from pyvmm.sandbox.confine import confine
from pyvmm.sandbox.outside import Outside
from pyvmm.snapshot.mark import KEY, made_key, own_key
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.writer import finish, write_into
from tests.host.conftest import wait_for
from tests.sandbox.escape import in_child


def test_confined_process_has_its_file_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def work() -> list[str]:
        with Outside(path, PRIVATE) as new:
            confine(Config(image=Path("guest")))
            os.write(new.fd, b"new")
            new.commit()
        return ["done"]

    assert in_child(work) == ["done"]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_snapshot_of_a_confined_process_is_marked_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made_key()
    path = tmp_path / "own.snap"

    def work() -> list[str]:
        with Outside(path, PRIVATE, lambda fd: [finish(fd, path)].clear()) as new:
            confine(Config(image=Path("guest")))
            write_into(new.fd, {"state": 1}, [])
            new.commit()
        with pytest.raises(HostError, match=f"cannot read .*{KEY}: Permission denied"):
            own_key()
        return ["done"]

    assert in_child(work) == ["done"]
    with SnapshotFile.open(path) as snapshot:
        assert snapshot.is_own


def test_confined_process_gets_another_file_for_the_same_path(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def work() -> list[list[str]]:
        seen = []
        with Outside(path) as new:
            confine(Config(image=Path("guest")))
            for text in ("first", "2nd"):
                os.write(new.fd, text.encode())
                new.commit()
                seen.append(text)
                new.renew()
            os.write(new.fd, b"without a commit")
        return [seen]

    assert in_child(work) == [["first", "2nd"]]
    assert path.read_text() == "2nd"
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_cannot_be_renewed_is_the_writers_error(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with Outside(place / "file") as new:
        new.commit()
        (place / "file").unlink()
        place.rmdir()

        with pytest.raises(UsageError, match="file: cannot be written: No such file"):
            new.renew()


def test_file_without_a_commit_is_removed(tmp_path: Path) -> None:
    with Outside(tmp_path / "file") as new:
        os.write(new.fd, b"new")
        assert len(list(tmp_path.iterdir())) == 1

    assert list(tmp_path.iterdir()) == []


def test_file_of_a_killed_process_is_removed_also_after_ctrl_c(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        try:
            os.setpgid(0, 0)
            Outside(tmp_path / "file")
            (tmp_path / "ready").touch()
            signal.pause()
        finally:
            os._exit(1)
    wait_for((tmp_path / "ready").exists)
    (tmp_path / "ready").unlink()

    os.killpg(pid, signal.SIGHUP)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    wait_for(lambda: not list(tmp_path.iterdir()))


def test_failed_rename_is_the_writers_error(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with Outside(place / "file") as new:
        for path in place.iterdir():
            path.unlink()

        with pytest.raises(UsageError, match="file: cannot be written: No such file"):
            new.commit()


def test_dead_process_is_an_error(tmp_path: Path) -> None:
    with Outside(tmp_path / "file") as new:
        os.kill(new._process, signal.SIGKILL)

        with pytest.raises(VmmError, match="the process that gives the file its name has ended"):
            new.commit()
