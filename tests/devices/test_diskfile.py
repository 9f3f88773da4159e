"""Disk images: refusals at opening, reads, writes and discards."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.devices import diskfile
from pyvmm.devices.diskfile import DiskFile
from pyvmm.devices.diskformats import FORMATS
from pyvmm.errors import HostError, UsageError, VmmError
from pyvmm.layout import MIB
from tests.privileges import bound_by_modes

SIZE = MIB
CONTENT = random.Random(1).randbytes(SIZE)

Open = Callable[..., DiskFile]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def opened(image: Path) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def make(path: Path = image, **options: bool) -> DiskFile:
            disk = DiskFile(path, option="-d", **options)
            stack.callback(disk.close)
            return disk

        yield make


def read(disk: DiskFile, offset: int, *sizes: int) -> bytes:
    buffers = [bytearray(size) for size in sizes]
    disk.read([memoryview(buffer) for buffer in buffers], offset)
    return b"".join(buffers)


def write(disk: DiskFile, offset: int, *parts: bytes, durable: bool = False) -> None:
    disk.write([memoryview(part) for part in parts], offset, durable=durable)


def refused(opened: Open, *arguments: Path, **options: bool) -> VmmError:
    with pytest.raises(VmmError) as caught:
        opened(*arguments, **options)
    return caught.value


def blocks(path: Path) -> int:
    """Return the bytes of storage that the file occupies."""
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("direct", [False, True])
def test_read_returns_the_written_bytes_of_the_file(
    opened: Open, image: Path, direct: bool
) -> None:
    disk = opened(direct=direct)
    data = random.Random(2).randbytes(3 * 4096)

    write(disk, 8192, data[:4096], data[4096:])

    assert read(disk, 4096, 4096, 8192, 8192) == CONTENT[4096:8192] + data + CONTENT[20480:24576]
    disk.flush()
    assert image.read_bytes() == CONTENT[:8192] + data + CONTENT[20480:]


def test_size_is_in_whole_blocks(opened: Open, image: Path) -> None:
    image.write_bytes(CONTENT + b"tail")

    disk = opened()

    assert (disk.size, disk.tail) == (SIZE, 4)
    assert (disk.block_size, disk.physical_block) == (512, 4096)


def test_direct_takes_unaligned_buffers(opened: Open, image: Path) -> None:
    disk = opened(direct=True)
    room = bytearray(8192 + 3)
    views = [memoryview(room)[3 : 3 + 100], memoryview(room)[103 : 3 + 8192]]

    disk.read(views, 4096)
    assert room[3:] == CONTENT[4096 : 4096 + 8192]

    disk.write([view.toreadonly() for view in views], 0)
    assert image.read_bytes()[:8192] == CONTENT[4096 : 4096 + 8192]


def test_direct_moves_more_than_its_bounce_buffer(
    opened: Open, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskfile, "BOUNCE", 8192)
    disk = opened(direct=True)
    room = bytearray(SIZE + 1)

    disk.read([memoryview(room)[1:20_001], memoryview(room)[20_001:]], 0)

    assert room[1:] == CONTENT


def test_file_that_became_shorter_is_an_io_error(opened: Open, image: Path) -> None:
    disk = opened()
    os.truncate(image, 8192)

    with pytest.raises(OSError, match="shorter") as caught:
        read(disk, 4096, 4096, 4096)

    assert caught.value.errno == errno.EIO
    assert read(disk, 4096, 4096) == CONTENT[4096:8192]


def test_write_that_stops_halfway_is_an_error(opened: Open, tmp_path: Path) -> None:
    image = tmp_path / "sparse"
    with image.open("wb") as file:
        file.truncate(SIZE)
    disk = opened(image)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # write(2) stops there, then fails
    try:
        with pytest.raises(OSError, match="File too large"):
            write(disk, 4096, b"a" * 4096, b"b" * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    assert image.read_bytes()[4096:8192] == b"a" * 4096


def test_durable_writes_are_writes(opened: Open, image: Path) -> None:
    write(opened(), 512, b"d" * 512, durable=True)

    assert image.read_bytes()[:1024] == CONTENT[:512] + b"d" * 512


def test_discard_frees_storage_and_keeps_the_size(opened: Open, image: Path) -> None:
    disk = opened()
    disk.flush()
    os.sync()
    before = blocks(image)

    disk.discard(256 << 10, 512 << 10)

    assert before - blocks(image) == 512 << 10
    assert image.stat().st_size == SIZE
    assert read(disk, 0, SIZE) == CONTENT[: 256 << 10] + bytes(512 << 10) + CONTENT[768 << 10 :]


@pytest.mark.parametrize("may_unmap", [True, False])
@pytest.mark.parametrize("ways", ["all", "without punching", "writing only"])
def test_zeroed_range_reads_as_zeroes_by_every_method(
    opened: Open, image: Path, monkeypatch: pytest.MonkeyPatch, may_unmap: bool, ways: str
) -> None:
    def no(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    for name in {"all": (), "without punching": ("_punch",)}.get(ways, ("_punch", "_zero_range")):
        monkeypatch.setattr(DiskFile, name, no)
    monkeypatch.setattr(diskfile, "ZEROES", 10_000)
    disk = opened()

    disk.zero(512, 100 << 10, may_unmap=may_unmap)

    assert image.read_bytes() == CONTENT[:512] + bytes(100 << 10) + CONTENT[512 + (100 << 10) :]


def test_file_system_without_holes_still_discards(
    opened: Open, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(DiskFile, "_punch", no)

    opened().discard(0, 4096)

    assert image.read_bytes() == CONTENT


def test_open_names_a_missing_file(opened: Open, tmp_path: Path) -> None:
    error = refused(opened, tmp_path / "none")

    assert isinstance(error, UsageError)
    assert error.message == f"-d {tmp_path}/none: No such file or directory"


def test_open_refuses_a_file_that_cannot_be_a_disk(opened: Open, tmp_path: Path) -> None:
    empty, qcow = tmp_path / "empty", tmp_path / "qcow"
    empty.touch()
    qcow.write_bytes(b"QFI\xfb" + bytes(1020))

    assert "is a directory" in refused(opened, tmp_path).message
    assert "is a directory" in refused(opened, tmp_path, read_only=True).message
    assert "too small for a disk: 0 bytes" in refused(opened, empty).message
    assert "is neither a file nor a block device" in refused(opened, Path("/dev/null")).message
    error = refused(opened, qcow)
    assert "QCOW" in error.message
    assert error.hint is not None


@pytest.mark.parametrize(("name", "offset", "magic"), FORMATS)
def test_open_refuses_a_disk_that_is_not_raw(
    opened: Open, tmp_path: Path, name: str, offset: int, magic: bytes
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(offset) + magic + bytes(1024))

    error = refused(opened, path)

    assert error.message == f"-d {path} is {name}"
    assert error.hint == "qemu-img convert -O raw makes a raw image of it"


def test_open_of_an_unwritable_file_hints_at_ro(opened: Open, image: Path) -> None:
    image.chmod(0o400)

    with bound_by_modes():
        error = refused(opened)

        assert error.hint == f"use -d {image},ro to read it only"
        assert read(opened(read_only=True), 0, 512) == CONTENT[:512]


def test_disk_in_use_is_refused_and_free_again_when_closed(opened: Open, image: Path) -> None:
    first = opened()

    error = refused(opened)
    assert isinstance(error, HostError)
    assert "in use" in error.message
    assert "in use" in refused(opened, read_only=True).message

    first.close()
    opened(read_only=True)
    opened(read_only=True)
    assert "in use" in refused(opened).message


def test_direct_is_refused_without_direct_io(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.preadv", no)

    error = refused(opened, direct=True)

    assert isinstance(error, HostError)
    assert "O_DIRECT" in error.message


@pytest.fixture
def device(image: Path) -> Iterator[Path]:
    """Return the image as a block device, if this machine has loop devices."""
    command = ["losetup", "-f", "--show", str(image)]
    done = subprocess.run(command, capture_output=True, text=True) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip("no loop device can be had")
    yield Path(done.stdout.strip())
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


@pytest.mark.parametrize("direct", [False, True])
def test_block_device_is_a_disk(opened: Open, device: Path, direct: bool) -> None:
    disk = opened(device, direct=direct)

    assert disk.is_block_device
    assert disk.size == SIZE
    write(disk, 4096, b"x" * 8192)
    disk.zero(4096, 4096, may_unmap=False)
    disk.zero(16384, 4096, may_unmap=True)
    disk.discard(32768, 4096)
    disk.flush()
    assert read(disk, 0, 4096) == CONTENT[:4096]
    assert read(disk, 4096, 8192) == bytes(4096) + b"x" * 4096
    assert read(disk, 16384, 4096) == bytes(4096)
    disk.close()


def test_block_device_in_use_is_refused(opened: Open, device: Path) -> None:
    fd = os.open(device, os.O_RDWR | os.O_EXCL)  # as a mount has it
    try:
        error = refused(opened, device)
    finally:
        os.close(fd)

    assert "Device or resource busy" in error.message
    assert error.hint is not None
    assert "mounted" in error.hint
