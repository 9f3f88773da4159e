"""Files are complete or unchanged."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyvmm.base.files import left_beside, replacing, write_all, write_whole
from pyvmm.errors import HostError, UsageError


def test_file_is_written_with_the_user_s_usual_mode(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    mask = os.umask(0o027)

    try:
        write_whole(path, b"new")
    finally:
        os.umask(mask)

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_file_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "probe.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", no_space)

    with pytest.raises(HostError, match=r"probe\.json: cannot be written: No space left"):
        write_whole(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_releases_views_of_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, kept = bytearray(16), []

    def no_space(fd: int, view: memoryview, offset: int) -> int:
        kept.append(view)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", no_space)
    with memoryview(data) as view, pytest.raises(OSError, match="No space left"):
        write_all(0, view)

    assert kept
    data.append(0)  # raises BufferError if a view is left


def test_link_at_the_temporary_path_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.write_bytes(b"mine")
    monkeypatch.setattr(os, "urandom", lambda size: b"\xab" * size)
    (tmp_path / ".probe.json.abababab.tmp").symlink_to(private)

    with pytest.raises(UsageError, match="cannot be written: File exists"):
        write_whole(tmp_path / "probe.json", b"new")

    assert private.read_bytes() == b"mine"


def test_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)

    write_whole(link, b"new")

    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    write_whole(pipe, b"new")

    assert os.read(reader, 9) == b"new"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


@pytest.mark.parametrize("place", ["missing/probe.json", "."])
def test_impossible_path_is_an_error(place: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: ") as caught:
        write_whole(tmp_path / place, b"new")

    assert caught.value.exit_code == 2


def test_left_beside_names_the_files_of_killed_writers_alone(tmp_path: Path) -> None:
    left = tmp_path / ".old.snap.0123abcd.tmp"
    for name in (".old.snap.0123abcd.tmp", "old.snap", ".other.tmp", ".x.0123abcg.tmp"):
        (tmp_path / name).touch()

    with replacing(tmp_path / "new.snap"):  # a writer at work: its file is locked
        assert left_beside(tmp_path / "any.snap") == [left]
    assert left.exists()
