"""Types of mounted file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.base import computer

LINES = (
    "22 1 0:20 / /proc rw,nosuid - proc proc rw\n"
    "30 1 0:45 / /mnt/a\\040b rw shared:9 master:1 - 9p share rw,trans=virtio\n"
    "31 1 8:1 /x /mnt/c rw - ext4 /dev/sda1 rw\n"
)


@pytest.mark.parametrize(
    ("device", "expected"),
    [((0, 20), "proc"), ((0, 45), "9p"), ((8, 1), "ext4"), ((8, 2), "")],
)
def test_file_system_is_the_one_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: tuple[int, int], expected: str
) -> None:
    (tmp_path / "mountinfo").write_text(LINES)
    monkeypatch.setattr(computer, "MOUNTINFO", tmp_path / "mountinfo")

    assert computer.file_system(os.makedev(*device)) == expected


def test_file_system_of_proc_is_proc() -> None:
    assert computer.file_system(Path("/proc").stat().st_dev) == "proc"
