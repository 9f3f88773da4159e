"""The persistent memory device and its driver."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.devices.diskfile import DiskFile
from pyvmm.devices.virtio.pmem import VirtioPmem
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.file import FileMemory
from pyvmm.memory.map import MemoryMap
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import NEEDS_RESET, Buffer
from tests.devices.virtio.rig import DeviceRig

SIZE = 2 * MIB
WINDOW = RAM_BASE + 64 * MIB


class Rig(DeviceRig[VirtioPmem]):
    """A file in guest memory, and the driver that flushes it."""

    def __init__(self, memory: GuestMemory, path: Path) -> None:
        self.disk = DiskFile(path, option="--pmem")
        self.content = FileMemory(self.disk.fd, WINDOW, SIZE)
        self.map = MemoryMap(memory, self.content)

        def make(_: GuestMemory, log: Callable[[str], None]) -> VirtioPmem:
            return VirtioPmem(self.map, self.disk, self.content, log)

        super().__init__(memory, make)
        self.driver.start(queues=1)

    def close(self) -> None:
        self.device.stop()
        self.content.__exit__(None, None, None)
        self.disk.close()

    def flush(self, type_: int = 0) -> int:
        ram = self.driver.ram
        answer = ram.put(b"\xff" * 4)
        request = ram.put(struct.pack("<I", type_))
        assert self.do(Buffer(request, 4), Buffer(answer, 4, True)) == 4
        return ram.read(answer, "<I")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pmem"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def rig(memory: GuestMemory, file: Path) -> Iterator[Rig]:
    made = Rig(memory, file)
    yield made
    made.close()


def test_configuration_has_the_address_and_size(rig: Rig) -> None:
    read = rig.mmio.mmio_read
    assert read(0x100, 4) | read(0x104, 4) << 32 == WINDOW
    assert read(0x108, 4) | read(0x10C, 4) << 32 == SIZE


def test_flush_flushes_the_file(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("os.fdatasync", flushed.append)

    assert rig.flush() == 0

    assert flushed == [rig.disk.fd]
    assert rig.device.counts == {"flushes": 1, "failed": 0}


def test_failed_flush_is_an_error_for_the_guest(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fdatasync", broken)

    assert rig.flush() == 1
    assert len(rig.lines) == 1
    assert "Input/output error" in rig.lines[0]


def test_other_devices_buffers_may_lie_in_it(rig: Rig, file: Path) -> None:
    view = rig.map.view(WINDOW + 512, 4)
    view[:] = b"here"
    view.release()

    assert file.read_bytes()[512:516] == b"here"
    assert not rig.map.contains(WINDOW + SIZE - 1, 2)


@pytest.mark.parametrize("sizes", [(3, 4), (5, 4), (4, 3)])
def test_invalid_chain_stops_the_device(rig: Rig, sizes: tuple[int, int]) -> None:
    ram = rig.driver.ram

    rig.submit(Buffer(ram.take(8), sizes[0]), Buffer(ram.take(8), sizes[1], True))
    rig.device.drain()

    assert rig.driver.status & NEEDS_RESET
    rig.driver.start(queues=1)
    assert rig.flush() == 0


def test_request_of_another_type_is_an_error(rig: Rig) -> None:
    assert rig.flush(type_=1) == 1
    assert rig.device.counts == {"flushes": 0, "failed": 1}
    assert rig.lines == []


def test_truncated_file_has_missing_bytes(rig: Rig, file: Path) -> None:
    assert rig.content.missing == 0

    os.truncate(file, MIB)

    assert rig.content.missing == SIZE - MIB


def test_writes_to_read_only_memory_do_not_change_the_file(file: Path) -> None:
    disk = DiskFile(file, option="--pmem", read_only=True)
    with FileMemory(disk.fd, WINDOW, SIZE, read_only=True) as content:
        view = content.view(WINDOW, 4)
        view[:] = b"mine"
        view.release()
    disk.close()

    assert file.read_bytes() == bytes(SIZE)
