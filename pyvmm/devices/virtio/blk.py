"""The virtio block device: a disk image or a block device of the host.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.2; linux/virtio_blk.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from pyvmm.devices.diskfile import SECTOR, DiskFile
from pyvmm.devices.virtio.device import ConfigField, Feature, QueueSpec
from pyvmm.devices.virtio.queue import Chain, QueueError, scatter
from pyvmm.devices.virtio.served import Job, ServedDevice
from pyvmm.memory.ram import Memory

F_SEG_MAX = Feature(2, "BLK_F_SEG_MAX")
F_RO = Feature(5, "BLK_F_RO")
F_BLK_SIZE = Feature(6, "BLK_F_BLK_SIZE")
F_FLUSH = Feature(9, "BLK_F_FLUSH")
F_TOPOLOGY = Feature(10, "BLK_F_TOPOLOGY")
F_DISCARD = Feature(13, "BLK_F_DISCARD")
F_WRITE_ZEROES = Feature(14, "BLK_F_WRITE_ZEROES")

# struct virtio_blk_outhdr: type, ioprio, sector
HEADER = struct.Struct("<IIQ")
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13

S_OK, S_IOERR, S_UNSUPP = 0, 1, 2

# struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags
RANGE = struct.Struct("<QII")
RANGE_F_UNMAP = 1

ID_BYTES = 20
QUEUE_SIZE = 256
LARGE = 256 << 10  # bytes: a larger request steps back, so that others can begin
MOST_RANGES = 16  # of a DISCARD or WRITE_ZEROES request
MOST_DISCARD = 1 << 22  # sectors of a range: 2 GiB
MOST_ZEROES = 1 << 17  # 64 MiB: without a better way, the device writes the zeroes
ZEROES = bytes(64 << 10)


# The number of bytes that a request wrote for the guest, and its counts
Done = tuple[int, dict[str, int]]
FAILED = {"failed": 1}


class Failed(Exception):
    """A request that cannot be served, with its status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class BlockRequest(NamedTuple):
    """A parsed request: the guest's data, and the room for the device's data.

    A NamedTuple, as each request makes one: a Record takes longer to make.
    """

    type: int
    sector: int
    given: list[memoryview]
    given_size: int
    room: list[memoryview]
    room_size: int
    status: memoryview


class VirtioBlk(ServedDevice):
    """One disk, with several requests in flight, each served by a thread.

    An error of the disk becomes the request's status, and a line in the log. Written data is
    durable after a flush; for a driver without F_FLUSH every write is durable.
    """

    device_id = 2
    name = "virtio-blk"
    queue_specs = (QueueSpec("requestq", QUEUE_SIZE),)
    features: tuple[Feature, ...] = (F_SEG_MAX, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY)
    counted = (
        "reads", "bytes_read", "writes", "bytes_written", "flushes", "discards", "bytes_discarded",
        "zeroings", "bytes_zeroed", "failed",
    )  # fmt: skip
    threads = 4

    capacity = ConfigField(0, 8, "size in sectors of 512 bytes")
    seg_max = ConfigField(12, 4, "most buffers of data in a request")
    blk_size = ConfigField(20, 4, "bytes of a logical block")
    physical_block_exp = ConfigField(24, 1, "log2 of logical blocks in a physical one")
    alignment_offset = ConfigField(25, 1, "of the first physical block, in logical blocks")
    min_io_size = ConfigField(26, 2, "the preferred unit of I/O, in logical blocks")
    opt_io_size = ConfigField(28, 4, "the optimal size of I/O, in logical blocks; 0: any")
    max_discard_sectors = ConfigField(36, 4, "sectors of a range to discard, at most")
    max_discard_seg = ConfigField(40, 4, "ranges of a request to discard, at most")
    discard_sector_alignment = ConfigField(
        44, 4, "the preferred unit of ranges to discard, sectors"
    )
    max_write_zeroes_sectors = ConfigField(48, 4, "sectors of a range to zero, at most")
    max_write_zeroes_seg = ConfigField(52, 4, "ranges of a request to zero, at most")
    write_zeroes_may_unmap = ConfigField(56, 1, "1: zeroing with UNMAP may free storage")

    def __init__(
        self, memory: Memory, disk: DiskFile, serial: bytes, log: Callable[[str], None]
    ) -> None:
        super().__init__(memory, log)
        self.disk = disk
        self.serial = serial[:ID_BYTES]
        self.backing = str(disk.path)
        blocks = disk.physical_block // disk.block_size
        self.capacity = disk.size // SECTOR
        if disk.tail:
            self.report(
                f"the last {disk.tail} bytes are not a whole block: the guest does not see them"
            )
        self.seg_max = QUEUE_SIZE - 2  # two buffers are for the header and the status
        self.blk_size = disk.block_size
        self.physical_block_exp = blocks.bit_length() - 1
        self.min_io_size = blocks
        if disk.read_only:
            self.features = (*self.features, F_RO)
        else:
            self.features = (*self.features, F_DISCARD, F_WRITE_ZEROES)
            self.max_discard_sectors, self.max_discard_seg = MOST_DISCARD, MOST_RANGES
            self.discard_sector_alignment = disk.physical_block // SECTOR
            self.max_write_zeroes_sectors, self.max_write_zeroes_seg = MOST_ZEROES, MOST_RANGES
            self.write_zeroes_may_unmap = 1

    def serve(self, job: Job) -> int:
        """Serve a request, and write its status to its last byte."""
        request = _take_apart(job.chain)
        if request.type not in (T_IN, T_OUT) or request.given_size + request.room_size > LARGE:
            self.step_back(job)
        written, status = 0, S_OK
        try:
            handler = HANDLERS.get(request.type)
            if handler is None:
                raise Failed(S_UNSUPP, f"request of type {request.type}")
            written, job.counts = handler(self, request)
        except Failed as error:
            status = error.status
        except OSError as error:
            status = S_IOERR
            self.report(f"{_words(request)}: {error.strerror}; the guest gets an I/O error")
        if written < request.room_size:  # fill the room before the status
            _clear(request.room, written)
        if status != S_OK:
            job.counts = FAILED
        request.status[0] = status
        return job.chain.writable_size

    def _read(self, request: BlockRequest) -> Done:
        offset = self._place(request.sector, request.room_size)
        self.disk.read(request.room, offset)
        return request.room_size, {"reads": 1, "bytes_read": request.room_size}

    def _write(self, request: BlockRequest) -> Done:
        self._refuse_if_read_only()
        offset = self._place(request.sector, request.given_size)
        self.disk.write(request.given, offset, durable=not self.has(F_FLUSH))
        return 0, {"writes": 1, "bytes_written": request.given_size}

    def _flush(self, request: BlockRequest) -> Done:
        self.disk.flush()
        return 0, {"flushes": 1}

    def _get_id(self, request: BlockRequest) -> Done:
        if request.room_size < ID_BYTES:
            raise Failed(S_IOERR, "no room for the id")
        return scatter(self.serial.ljust(ID_BYTES, b"\0"), request.room), {}

    def _discard(self, request: BlockRequest) -> Done:
        ranges = self._ranges(request, MOST_DISCARD, 0)
        for offset, length, _ in ranges:
            self.disk.discard(offset, length)
        return 0, {"discards": 1, "bytes_discarded": sum(length for _, length, _ in ranges)}

    def _write_zeroes(self, request: BlockRequest) -> Done:
        ranges = self._ranges(request, MOST_ZEROES, RANGE_F_UNMAP)
        for offset, length, flags in ranges:
            self.disk.zero(offset, length, may_unmap=bool(flags & RANGE_F_UNMAP))
        return 0, {"zeroings": 1, "bytes_zeroed": sum(length for _, length, _ in ranges)}

    def _ranges(self, request: BlockRequest, most: int, allowed: int) -> list[tuple[int, int, int]]:
        """Return a request's checked ranges: offset, length, flags."""
        self._refuse_if_read_only()
        count, rest = divmod(request.given_size, RANGE.size)
        if rest or not 0 < count <= MOST_RANGES:
            raise Failed(S_IOERR, f"{request.given_size} bytes of ranges")
        ranges = []
        for sector, sectors, flags in RANGE.iter_unpack(b"".join(request.given)):
            if flags & ~allowed:
                raise Failed(S_UNSUPP, f"flags {flags:#x}")
            if sectors > most:
                raise Failed(S_IOERR, f"{sectors} sectors at once")
            ranges.append((self._place(sector, sectors * SECTOR), sectors * SECTOR, flags))
        return ranges

    def _place(self, sector: int, length: int) -> int:
        """Return a range's offset in the file, if it has whole blocks and is inside."""
        unit = self.disk.block_size
        if length % unit or sector * SECTOR % unit or sector * SECTOR + length > self.disk.size:
            raise Failed(S_IOERR, f"{length} bytes at sector {sector}")
        return sector * SECTOR

    def _refuse_if_read_only(self) -> None:
        if self.disk.read_only:
            raise Failed(S_IOERR, "the disk is read-only")


HANDLERS: dict[int, Callable[[VirtioBlk, BlockRequest], Done]] = {
    T_IN: VirtioBlk._read,
    T_OUT: VirtioBlk._write,
    T_FLUSH: VirtioBlk._flush,
    T_GET_ID: VirtioBlk._get_id,
    T_DISCARD: VirtioBlk._discard,
    T_WRITE_ZEROES: VirtioBlk._write_zeroes,
}

WORDS = {
    T_IN: "read", T_OUT: "write", T_FLUSH: "flush", T_DISCARD: "discard",
    T_WRITE_ZEROES: "zeroing",
}  # fmt: skip


def _take_apart(chain: Chain) -> BlockRequest:
    """Parse a chain, however it is divided into buffers.

    Raises: QueueError, for a chain without a header or room for a status.
    """
    if chain.readable_size < HEADER.size or not chain.writable_size:
        raise QueueError(f"requestq chain {chain.head} has no header, or no room for a status")
    first, last = chain.readable[0], chain.writable[-1]
    room_size = chain.writable_size - 1
    # Most drivers use separate buffers for header and status.
    if len(first) == HEADER.size:
        head: bytes | memoryview = first
        given = chain.readable[1:]
    else:
        head = b"".join(_cut(chain.readable, 0, HEADER.size))
        given = _cut(chain.readable, HEADER.size, chain.readable_size)
    room = chain.writable[:-1] if len(last) == 1 else _cut(chain.writable, 0, room_size)
    type_, _, sector = HEADER.unpack(head)
    return BlockRequest(
        type_, sector, given, chain.readable_size - HEADER.size, room, room_size, last[-1:]
    )


def _cut(views: list[memoryview], start: int, end: int) -> list[memoryview]:
    """Return bytes ``start`` to ``end`` of consecutive views."""
    found = []
    for view in views:
        if start < len(view) and end > 0:
            whole = start <= 0 and end >= len(view)
            found.append(view if whole else view[max(start, 0) : end])
        start -= len(view)
        end -= len(view)
    return found


def _clear(views: list[memoryview], start: int) -> None:
    """Zero the bytes from ``start`` on."""
    for view in _cut(views, start, sum(map(len, views))):
        for at in range(0, len(view), len(ZEROES)):
            part = min(len(ZEROES), len(view) - at)
            view[at : at + part] = ZEROES[:part]


def _words(request: BlockRequest) -> str:
    what = WORDS.get(request.type, "request")
    size = request.given_size + request.room_size
    return f"{what} at sector {request.sector}" + (f", {size} bytes" if size else "")
