"""The initramfs archive, read back by others: cpio where it is installed, and the format's text.

Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import io
import os
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from pyvmm.host.parts.cpio import CpioWriter
from tests.conftest import tool

FIELDS = (
    "ino", "mode", "uid", "gid", "nlink", "mtime", "filesize",
    "maj", "min", "rmaj", "rmin", "namesize", "chksum",
)  # fmt: skip


class Entry(NamedTuple):
    header: dict[str, int]
    content: bytes


def parse(archive: bytes) -> dict[str, Entry]:
    """Read an archive as the format's description says."""
    entries: dict[str, Entry] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = archive[at + 6 : at + 110]
        header = {f: int(numbers[i * 8 : i * 8 + 8], 16) for i, f in enumerate(FIELDS)}
        name = archive[at + 110 : at + 110 + header["namesize"]]
        assert name.endswith(b"\0")
        at = -(-(at + 110 + header["namesize"]) // 4) * 4
        content = archive[at : at + header["filesize"]]
        at = -(-(at + header["filesize"]) // 4) * 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return entries
        assert name[:-1].decode() not in entries
        entries[name[:-1].decode()] = Entry(header, content)


@pytest.fixture
def archive() -> bytes:
    """Write files of every length modulo 4, directories and a device."""
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.file("init", b"#!/busybox sh\n", 0o755)
    writer.device("dev/console", 5, 1)
    for size in range(5):
        writer.file(f"deep/er/{'n' * (size + 1)}", b"x" * size)
    writer.close()
    return out.getvalue()


def test_files_have_their_contents_and_modes(archive: bytes) -> None:
    entries = parse(archive)

    assert entries["init"].content == b"#!/busybox sh\n"
    assert entries["init"].header["mode"] == stat.S_IFREG | 0o755
    for size in range(5):
        assert entries[f"deep/er/{'n' * (size + 1)}"].content == b"x" * size


def test_directories_occur_once_and_before_their_contents(archive: bytes) -> None:
    names = list(parse(archive))

    assert names.index("deep") < names.index("deep/er") < names.index("deep/er/n")
    assert stat.S_ISDIR(parse(archive)["deep"].header["mode"])


def test_device_has_its_numbers_and_belongs_to_root(archive: bytes) -> None:
    header = parse(archive)["dev/console"].header

    assert stat.S_ISCHR(header["mode"])
    assert (header["rmaj"], header["rmin"]) == (5, 1)
    assert (header["uid"], header["gid"]) == (0, 0)


def test_inode_numbers_differ(archive: bytes) -> None:
    inodes = [entry.header["ino"] for entry in parse(archive).values()]

    assert len(set(inodes)) == len(inodes)


@pytest.mark.parametrize("program", ["cpio", "busybox"])
def test_other_programs_unpack_the_archive(program: str, archive: bytes, tmp_path: Path) -> None:
    path = tool(program)
    command = [path, "cpio"] if program == "busybox" else [path]

    subprocess.run([*command, "-id", "init", "deep/*"], input=archive, cwd=tmp_path, check=True)

    assert (tmp_path / "init").read_bytes() == b"#!/busybox sh\n"
    assert os.access(tmp_path / "init", os.X_OK)
    assert (tmp_path / "deep/er/nnnnn").read_bytes() == b"xxxx"
