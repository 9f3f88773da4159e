"""The block device with a file as its disk."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyvmm.devices.diskfile import DiskFile
from pyvmm.devices.virtio.blk import VirtioBlk
from pyvmm.layout import MIB
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import NEEDS_RESET, Buffer
from tests.devices.virtio.plain import PlainPath, plain
from tests.devices.virtio.rig import DeviceRig

SIZE = MIB
SECTORS = SIZE // 512
CONTENT = random.Random(3).randbytes(SIZE)

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
F_RO, F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1 << 5, 1 << 9, 1 << 13, 1 << 14
UNMAP = 1
SERIAL = b"pyvmm0123456789abcde"


class Rig(DeviceRig[VirtioBlk]):
    """A disk and its driver."""

    def __init__(
        self,
        memory: GuestMemory,
        image: Path,
        *,
        legacy: bool = False,
        in_c: bool = False,
        **options: bool,
    ) -> None:
        self.image = image
        self.disk = DiskFile(image, option="-d", **options)
        super().__init__(
            memory, lambda ram, log: VirtioBlk(ram, self.disk, SERIAL, log), legacy=legacy
        )
        self.path = PlainPath(self.device, plain()) if in_c else None
        if self.path is not None:
            self.mmio.use_interrupt_bits(self.path.bits)

    def close(self) -> None:
        if self.path is not None:
            self.path.close()
        self.device.stop()
        self.disk.close()

    def count(self, name: str) -> int:
        with self.device.lock:
            return self.device.counts[name]

    def request(self, type_: int, sector: int, *data: Buffer) -> tuple[int, int]:
        """Run a request; return its status and the reported number of bytes written."""
        ram = self.driver.ram
        header = ram.put(struct.pack("<IIQ", type_, 0, sector))
        status = ram.put(b"\xff")
        written = self.do(Buffer(header, 16), *data, Buffer(status, 1, True))
        return ram.read(status, "<B"), written

    def read(self, sector: int, *sizes: int) -> tuple[int, bytes]:
        buffers = [Buffer(self.driver.ram.take(size), size, True) for size in sizes]
        status, written = self.request(IN, sector, *buffers)
        assert written == sum(sizes) + 1
        return status, b"".join(self.memory.read(b.addr, b.length) for b in buffers)

    def write(self, sector: int, *parts: bytes) -> int:
        return self.request(
            OUT, sector, *(Buffer(self.driver.ram.put(part), len(part)) for part in parts)
        )[0]

    def ranges(self, type_: int, *ranges: tuple[int, int, int]) -> int:
        data = b"".join(struct.pack("<QII", *each) for each in ranges)
        return self.request(type_, 0, Buffer(self.driver.ram.put(data), len(data)))[0]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(params=["modern", "legacy", "modern-c", "legacy-c"])
def rig(memory: GuestMemory, image: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    kind, _, in_c = request.param.partition("-")
    made = Rig(memory, image, legacy=kind == "legacy", in_c=bool(in_c))
    made.driver.start(queues=1)
    yield made
    made.close()


def config(rig: Rig, offset: int, size: int) -> int:
    return rig.mmio.mmio_read(0x100 + offset, size)


def test_configuration_has_the_offsets_of_the_header(rig: Rig) -> None:
    assert config(rig, 0, 4) | config(rig, 4, 4) << 32 == SECTORS
    assert config(rig, 12, 4) == 254
    assert config(rig, 20, 4) == 512
    assert config(rig, 24, 1) == 3  # 4096 bytes
    assert config(rig, 26, 2) == 8
    assert config(rig, 36, 4) > 0
    assert config(rig, 40, 4) == config(rig, 52, 4) == 16
    assert config(rig, 48, 4) > 0
    assert config(rig, 56, 1) == 1


def test_read_returns_the_files_content(rig: Rig) -> None:
    assert rig.read(0, 512) == (OK, CONTENT[:512])
    assert rig.read(3, 512, 4096, 1024) == (OK, CONTENT[3 * 512 : 3 * 512 + 5632])
    assert rig.read(SECTORS - 1, 512) == (OK, CONTENT[-512:])
    assert rig.count("reads") == 3
    assert rig.count("bytes_read") == 512 + 5632 + 512


def test_write_changes_only_its_range_of_the_file(rig: Rig) -> None:
    assert rig.write(5, b"a" * 512, b"b" * 1024) == OK

    changed = CONTENT[: 5 * 512] + b"a" * 512 + b"b" * 1024 + CONTENT[8 * 512 :]
    assert rig.image.read_bytes() == changed
    assert rig.request(FLUSH, 0)[0] == OK
    assert rig.count("bytes_written") == 1536
    assert rig.count("flushes") == 1


@pytest.mark.parametrize(
    "sizes", [[16, 512, 1], [10, 6, 200, 312, 1], [16 + 100, 412, 1], [1] * 16 + [511, 1, 1]]
)
def test_write_does_not_depend_on_its_division_into_buffers(
    memory: GuestMemory, image: Path, sizes: Sequence[int]
) -> None:
    rig = Rig(memory, image)
    rig.driver.start(queues=1)
    ram = rig.driver.ram
    request = struct.pack("<IIQ", OUT, 0, 7) + b"x" * 512
    place, status = ram.put(request), ram.put(b"\xff")
    buffers = []
    for size in sizes[:-1]:
        buffers.append(Buffer(place, size))
        place += size

    rig.do(*buffers, Buffer(status, 1, True))

    assert ram.read(status, "<B") == OK
    assert image.read_bytes() == CONTENT[: 7 * 512] + b"x" * 512 + CONTENT[8 * 512 :]
    rig.close()


def test_status_is_the_last_writable_byte(rig: Rig) -> None:
    ram = rig.driver.ram
    header = ram.put(struct.pack("<IIQ", IN, 0, 1))
    room = ram.put(b"\xff" * 1024)

    written = rig.do(Buffer(header, 16), Buffer(room, 100, True), Buffer(room + 100, 413, True))

    assert written == 513
    assert rig.memory.read(room, 514) == CONTENT[512:1024] + b"\0\xff"


@pytest.mark.parametrize(
    ("sector", "sizes"),
    [(SECTORS, [512]), (SECTORS - 1, [1024]), (1 << 63, [512]), ((1 << 64) - 1, [512]),
     (0, [511]), (0, [513])],
)  # fmt: skip
def test_range_beyond_the_disk_or_of_partial_sectors_is_an_io_error(
    rig: Rig, sector: int, sizes: list[int]
) -> None:
    status, data = rig.read(sector, *sizes)

    assert status == IOERR
    assert data == bytes(sum(sizes))
    assert rig.write(sector, *(b"z" * size for size in sizes)) == IOERR
    assert rig.image.read_bytes() == CONTENT
    assert rig.count("failed") == 2
    assert rig.lines == []


def test_id_is_the_serial_number(rig: Rig) -> None:
    room = rig.driver.ram.take(20)

    assert rig.request(GET_ID, 0, Buffer(room, 7, True), Buffer(room + 7, 13, True)) == (OK, 21)
    assert rig.memory.read(room, 20) == SERIAL
    assert rig.request(GET_ID, 0, Buffer(room, 19, True))[0] == IOERR


@pytest.mark.parametrize("type_", [2, 3, 10, 14, 0x8000_0000])
def test_unknown_request_is_unsupported(rig: Rig, type_: int) -> None:
    assert rig.request(type_, 0)[0] == UNSUPP


def test_discard_and_write_zeroes_do_their_ranges(rig: Rig) -> None:
    assert rig.ranges(DISCARD, (8, 8, 0), (64, 16, 0)) == OK
    assert rig.ranges(WRITE_ZEROES, (256, 1, 0), (512, 8, UNMAP)) == OK

    expected = bytearray(CONTENT)
    for sector, count in ((8, 8), (64, 16), (256, 1), (512, 8)):
        expected[sector * 512 : (sector + count) * 512] = bytes(count * 512)
    assert rig.image.read_bytes() == expected
    assert rig.count("bytes_discarded") == 24 * 512
    assert rig.count("bytes_zeroed") == 9 * 512


@pytest.mark.parametrize(
    ("type_", "ranges", "status"),
    [
        (DISCARD, [(0, 8, UNMAP)], UNSUPP),
        (DISCARD, [(0, 8, 2)], UNSUPP),
        (WRITE_ZEROES, [(0, 8, 2)], UNSUPP),
        (DISCARD, [(0, 8, 0), (SECTORS, 1, 0)], IOERR),
        (DISCARD, [(0, (1 << 22) + 1, 0)], IOERR),
        (WRITE_ZEROES, [(0, (1 << 17) + 1, 0)], IOERR),
        (WRITE_ZEROES, [((1 << 64) - 1, 2, 0)], IOERR),
        (DISCARD, [(0, 1, 0)] * 17, IOERR),
        (DISCARD, [], IOERR),
    ],
)
def test_request_with_an_invalid_range_changes_nothing(
    rig: Rig, type_: int, ranges: list[tuple[int, int, int]], status: int
) -> None:
    assert rig.ranges(type_, *ranges) == status
    assert rig.image.read_bytes() == CONTENT


def test_read_only_disk_refuses_writes(memory: GuestMemory, image: Path) -> None:
    rig = Rig(memory, image, read_only=True)
    rig.driver.start(queues=1)

    assert rig.driver.features & F_RO
    assert not rig.driver.features & (F_DISCARD | F_WRITE_ZEROES)
    assert rig.read(1, 512) == (OK, CONTENT[512:1024])
    assert rig.write(0, b"w" * 512) == IOERR
    assert rig.ranges(DISCARD, (0, 8, 0)) == IOERR
    assert rig.ranges(WRITE_ZEROES, (0, 8, 0)) == IOERR
    assert rig.request(FLUSH, 0)[0] == OK
    assert image.read_bytes() == CONTENT
    rig.close()


@pytest.mark.parametrize("in_c", [False, True])
def test_write_is_durable_for_a_driver_without_flushes(
    memory: GuestMemory, image: Path, monkeypatch: pytest.MonkeyPatch, in_c: bool
) -> None:
    flags = []
    pwritev = os.pwritev

    def watched(fd: int, buffers: Sequence[memoryview], offset: int, flag: int) -> int:
        flags.append(flag)
        return pwritev(fd, buffers, offset, flag)

    monkeypatch.setattr("os.pwritev", watched)
    for wanted in (-1, ~F_FLUSH):
        rig = Rig(memory, image, in_c=in_c)
        rig.driver.start(queues=1, wanted=wanted)
        assert rig.write(0, b"w" * 512) == OK
        rig.close()

    assert flags == [*([] if in_c else [0]), os.RWF_DSYNC]  # C knows no durable writes


def test_truncated_file_is_an_io_error_in_the_log(rig: Rig) -> None:
    os.truncate(rig.image, 8192)

    status, data = rig.read(15, 1024)

    assert status == IOERR
    assert data == bytes(1024)
    assert rig.lines == [
        f"virtio-blk {rig.image}: read at sector 15, 1024 bytes: the file has become shorter; "
        "the guest gets an I/O error"
    ]
    assert rig.read(15, 512) == (OK, CONTENT[15 * 512 : 16 * 512])


@pytest.mark.parametrize("legacy", [False, True])
def test_refusals_of_the_host_are_logged_eight_times(
    memory: GuestMemory, image: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    rig = Rig(memory, image, legacy=legacy)
    rig.driver.start(queues=1)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwritev", full)

    assert [rig.write(0, b"w" * 512) for _ in range(20)] == [IOERR] * 20
    assert len(rig.lines) == 8
    assert "No space left on device" in rig.lines[0]
    assert rig.lines[-1].endswith("further lines are left out")
    assert rig.read(0, 512) == (OK, CONTENT[:512])
    rig.close()


@pytest.mark.parametrize("what", ["no header", "no room"])
def test_invalid_chain_stops_the_device_until_a_reset(rig: Rig, what: str) -> None:
    ram = rig.driver.ram
    place = ram.take(64)
    buffers = [Buffer(place, 15), Buffer(place + 32, 1, True)]
    if what == "no room":
        buffers = [Buffer(place, 16)]

    rig.submit(*buffers)
    rig.device.drain()

    assert rig.driver.status & NEEDS_RESET
    assert len(rig.lines) == 1
    rig.driver.start(queues=1)
    assert rig.read(0, 512) == (OK, CONTENT[:512])


def test_tail_of_a_file_is_logged(memory: GuestMemory, image: Path) -> None:
    image.write_bytes(CONTENT + b"tail")

    rig = Rig(memory, image)

    assert rig.lines == [
        f"virtio-blk {image}: the last 4 bytes are not a whole block: the guest does not see them"
    ]
    rig.driver.start(queues=1)
    assert rig.read(SECTORS - 1, 512)[0] == OK
    assert rig.read(SECTORS, 512)[0] == IOERR
    rig.close()


@pytest.mark.parametrize("in_c", [False, True])
def test_requests_in_flight_leave_the_disk_as_in_sequence(
    memory: GuestMemory, image: Path, in_c: bool
) -> None:
    rig = Rig(memory, image, in_c=in_c)
    rig.driver.start(queues=1)
    rng, ram = random.Random(4), rig.driver.ram
    expected = bytearray(CONTENT)
    places = [ram.take(16 + 4096 + 1) for _ in range(32)]
    for _ in range(30):
        waiting = {}
        for sector, place in zip(rng.sample(range(0, SECTORS, 8), 32), places, strict=True):
            data = rng.randbytes(4096)
            write = rng.random() < 0.5
            memory.write(place, struct.pack("<IIQ", OUT if write else IN, 0, sector))
            memory.write(place + 16, data if write else bytes(4096))
            memory.write(place + 16 + 4096, b"\xff")
            head = rig.driver.rings[0].add(
                Buffer(place, 16),
                Buffer(place + 16, 4096, not write),
                Buffer(place + 16 + 4096, 1, True),
            )
            if write:
                expected[sector * 512 : sector * 512 + 4096] = data
            waiting[head] = place, sector
        rig.driver.kick_if_wanted(0)
        assert rig.collect(32).keys() == waiting.keys()
        for place, sector in waiting.values():
            got = memory.read(place + 16, 4097)
            assert got == expected[sector * 512 : sector * 512 + 4096] + b"\0"

    assert image.read_bytes() == expected
    rig.close()
