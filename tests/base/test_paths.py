"""Paths are refused that the kernel cannot take, and files that have effects when opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.base.paths import check_path, is_storage
from pyvmm.errors import UsageError


@pytest.mark.parametrize(
    ("path", "reason"),
    [("disk\0.img", "cannot hold a NUL"), ("disk\ud800.img", "lone surrogate")],
)
def test_path_the_kernel_cannot_take_is_refused_by_its_name(path: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^the file='disk.*{reason}"):
        check_path(Path(path), "the file")


@pytest.mark.parametrize("name", [b"disk.img", "disk \N{GREEK SMALL LETTER MU}".encode(), b"d\xff"])
def test_path_of_any_other_bytes_is_accepted(name: bytes) -> None:
    check_path(Path(os.fsdecode(name)), "the file")


def test_regular_files_are_storage_and_others_are_not(tmp_path: Path) -> None:
    regular, pipe = tmp_path / "regular", tmp_path / "pipe"
    regular.touch()
    os.mkfifo(pipe)

    assert is_storage(regular.stat().st_mode)
    for other in (pipe, tmp_path, Path("/dev/null")):
        assert not is_storage(other.stat().st_mode), other
