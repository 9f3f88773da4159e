"""Other file systems than hugetlbfs; test_options.py has a real hugetlbfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.base import computer
from pyvmm.errors import HostError, UsageError
from pyvmm.layout import MIB
from pyvmm.memory import hugetlbfs
from pyvmm.memory.ram import GuestMemory


def test_other_file_system_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        GuestMemory(0x8000_0000, 16 * MIB, huge_pages=tmp_path)

    assert caught.value.message == f"`hugetlbfs`={tmp_path}: this is not a hugetlbfs"
    assert caught.value.hint == f"mount -t hugetlbfs none {tmp_path}"


def test_missing_directory_is_refused() -> None:
    with pytest.raises(UsageError, match="`hugetlbfs`=/no/such: No such file"):
        hugetlbfs.page_size(Path("/no/such"))


def test_page_size_is_that_of_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch)

    assert hugetlbfs.page_size(tmp_path) == tmp_path_page(tmp_path)


def test_memory_of_whole_pages_is_mapped_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, monkeypatch)

    with GuestMemory(0x8000_0000, MIB, huge_pages=tmp_path) as memory:
        memory.write(0x8000_0000, b"guest")
        memory.zero(0x8000_0001, MIB - 1)

        assert memory.read(0x8000_0000, 8) == b"g" + bytes(7)
        assert list(tmp_path.iterdir()) == []


def test_half_a_page_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch)

    with pytest.raises(UsageError, match="is not a whole number of the"):
        hugetlbfs.map_pages(tmp_path, tmp_path_page(tmp_path) // 2)


def test_refusing_file_system_is_named_with_its_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, monkeypatch)

    with pytest.raises(HostError, match=r"cannot map \d+ pages of .*: ") as caught:
        hugetlbfs.map_pages(tmp_path, 1 << 62)

    assert caught.value.hint is not None


def tmp_path_page(path: Path) -> int:
    """Return the block size of the file system there."""
    return os.statvfs(path).f_bsize


def pretend(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake a list of mounts that calls the file system there a hugetlbfs."""
    device = path.stat().st_dev
    listed = path.parent / "mountinfo"
    listed.write_text(
        f"30 1 {os.major(device)}:{os.minor(device)} / {path} rw "
        f"shared:9 - hugetlbfs none rw,pagesize=2M\n"
    )
    monkeypatch.setattr(computer, "MOUNTINFO", listed)
