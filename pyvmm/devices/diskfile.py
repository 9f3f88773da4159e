"""A disk's file or block device: opened, locked, read and written in place.

An operation handles its whole range or raises OSError. No operation moves a file offset, so threads
may run them in parallel. ``size`` is the file's size when it was opened: every access must end
before it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Self

from pyvmm.base.paths import is_storage
from pyvmm.devices.diskformats import CONVERT, HEAD, disk_format
from pyvmm.errors import HostError, UsageError

SECTOR = 512  # the unit of virtio and of most of Linux

# Source: linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

# Source: linux/fs.h: _IO(0x12, n), the same number everywhere but on mips, powerpc and sparc
BLKZEROOUT = 0x127F
BLKSSZGET = 0x1268  # an int: the logical block size
BLKPBSZGET = 0x127B  # an unsigned int: the physical one
BLKGETSIZE64 = 0x8008_1272  # _IOR(0x12, 114, size_t)

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})
PHYSICAL_BLOCK = 4096  # for every file, so that a restore on another file system has the same value
ZEROES = 1 << 20  # bytes of each write, if no system call can zero a range
BOUNCE = 1 << 20  # bytes of the buffer between O_DIRECT and unaligned guest buffers

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

Buffers = Sequence[memoryview]


class DiskFile:
    """An open disk image or block device, locked with flock(2).

    The lock of a read-only disk is shared, the lock of a writable disk exclusive. ``block_size``
    is the smallest unit of accesses, ``physical_block`` the preferred one, in bytes. ``size`` is a
    multiple of ``block_size``; ``tail`` is the rest of the file.
    """

    def __init__(
        self, path: Path, *, option: str, read_only: bool = False, direct: bool = False
    ) -> None:
        """Open the file, with O_DIRECT if ``direct``. Messages begin with the field ``option``.

        Raises:
            UsageError: the file does not exist, or cannot be a disk.
            HostError: the file is in use, or its file system lacks O_DIRECT.
        """
        self.path = path
        self.read_only = read_only
        self.direct = direct
        self.fd = -1
        self._option = option
        with contextlib.ExitStack() as undo:
            self.fd = _open(path, option, read_only=read_only)
            undo.callback(self.close)
            self._measure()
            self._lock()
            if direct:
                self._go_direct()
            self.tail = self.size % self.block_size
            self.size -= self.tail
            undo.pop_all()

    def close(self) -> None:
        """Close the file and release the lock; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, buffers: Buffers, offset: int) -> None:
        """Fill the buffers from ``offset`` on; raise EIO if the file has become shorter."""
        try:
            if os.preadv(self.fd, buffers, offset) != sum(map(len, buffers)):
                with _Span(buffers) as span:
                    _transfer(self.fd, span, offset)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
            self._bounce(buffers, offset)

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        """Write the buffers at ``offset``; with ``durable`` return once they are on the disk."""
        flags = os.RWF_DSYNC if durable else 0
        try:
            if os.pwritev(self.fd, buffers, offset, flags) != sum(map(len, buffers)):
                with _Span(buffers) as span:
                    _transfer(self.fd, span, offset, flags)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
            self._bounce(buffers, offset, flags)

    def _bounce(self, buffers: Buffers, offset: int, write_flags: int | None = None) -> None:
        """Read, or with ``write_flags`` write, through an aligned buffer, as O_DIRECT requires."""
        with (
            _Span(buffers) as span,
            mmap.mmap(-1, BOUNCE) as room,
            memoryview(room) as whole,
        ):
            while span.left:
                with whole[: min(BOUNCE, span.left)] as part:
                    if write_flags is not None:
                        span.copy(part, into=True)
                    with _Span([part]) as own:
                        _transfer(self.fd, own, offset, write_flags)
                    if write_flags is None:
                        span.copy(part, into=False)
                    offset += len(part)

    def flush(self) -> None:
        """Return once all earlier writes are on the disk."""
        if not self.read_only:
            os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """Free a range's storage, if possible; its content becomes undefined."""
        try:
            self._punch(offset, length)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise

    def zero(self, offset: int, length: int, *, may_unmap: bool) -> None:
        """Make a range read as zeroes; ``may_unmap`` allows its storage to be freed."""
        for way in (self._punch, self._zero_range) if may_unmap else (self._zero_range,):
            try:
                way(offset, length)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            else:
                return
        self._write_zeroes(offset, length)

    def _punch(self, offset: int, length: int) -> None:
        # A block device's hole reads as zeroes too.  Source: blkdev_fallocate() in block/fops.c
        self._fallocate(FALLOC_FL_PUNCH_HOLE, offset, length)

    def _zero_range(self, offset: int, length: int) -> None:
        if self.is_block_device:
            fcntl.ioctl(self.fd, BLKZEROOUT, struct.pack("QQ", offset, length))
        else:
            self._fallocate(FALLOC_FL_ZERO_RANGE, offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self.fd, mode | FALLOC_FL_KEEP_SIZE, offset, length) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _write_zeroes(self, offset: int, length: int) -> None:
        # An anonymous mapping: page-aligned zeroes, as O_DIRECT requires.
        with mmap.mmap(-1, min(ZEROES, length)) as zeroes, memoryview(zeroes) as view:
            for start in range(0, length, ZEROES):
                with view[: min(ZEROES, length - start)] as part:
                    self.write([part], offset + start)

    def _measure(self) -> None:
        """Set the size and the units; refuse a file that cannot be a disk."""
        status = os.fstat(self.fd)
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        self.block_size, self.physical_block = SECTOR, PHYSICAL_BLOCK
        if self.is_block_device:
            self.size = self._ask("Q", BLKGETSIZE64)
            self.block_size = self._ask("i", BLKSSZGET)
            self.physical_block = self._ask("I", BLKPBSZGET)
        elif stat.S_ISREG(status.st_mode):
            self.size = status.st_size
        else:  # it was replaced after _open() looked
            self._refuse("is neither a file nor a block device")
        if self.size < SECTOR:
            self._refuse(f"is too small for a disk: {self.size} bytes", "truncate -s 1G makes one")
        kind = disk_format(os.pread(self.fd, HEAD, 0))
        if kind is not None and not self.is_block_device:
            self._refuse(f"is {kind}", CONVERT)

    def _ask(self, form: str, request: int) -> int:
        answer = fcntl.ioctl(self.fd, request, bytes(struct.calcsize(form)))
        return int(struct.unpack(form, answer)[0])

    def _refuse(self, why: str, hint: str | None = None) -> NoReturn:
        raise UsageError(f"{self._option} {self.path} {why}", hint=hint)

    def _lock(self) -> None:
        try:
            fcntl.flock(
                self.fd, (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB
            )
        except BlockingIOError:
            raise HostError(
                f"{self._option} {self.path} is in use, by another VM or twice by this one",
                hint="stop the other VM, or add ,ro to both: two writers destroy a file system",
            ) from None
        except OSError:  # a file system without locks
            pass

    def _go_direct(self) -> None:
        """Switch O_DIRECT on, and find the smallest unit that it accepts, by trying."""
        try:
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError as error:
            raise self._no_direct(error) from error
        with mmap.mmap(-1, 2 * mmap.PAGESIZE) as room, memoryview(room) as view:
            unit = self.block_size
            while unit <= mmap.PAGESIZE:
                with view[unit : 2 * unit] as part:
                    try:
                        os.preadv(self.fd, [part], 0)
                    except OSError as error:
                        if error.errno != errno.EINVAL:
                            raise self._no_direct(error) from error
                    else:
                        self.block_size = unit
                        self.physical_block = max(unit, self.physical_block)
                        return
                unit *= 2
        raise self._no_direct(OSError(errno.EINVAL, os.strerror(errno.EINVAL)))

    def _no_direct(self, error: OSError) -> HostError:
        return HostError(
            f"{self._option} {self.path} cannot be read and written with O_DIRECT: "
            f"{error.strerror}",
            hint="leave ,direct out, or put the disk on a file system with direct I/O",
        )


def _open(path: Path, option: str, *, read_only: bool) -> int:
    # O_NONBLOCK: opening a pipe by mistake must not block.
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _directory(option, path)
        if not is_storage(mode):
            raise UsageError(f"{option} {path} is neither a file nor a block device")
        if not read_only and stat.S_ISBLK(mode):
            flags |= os.O_EXCL  # EBUSY for a mounted device
        return os.open(path, flags)
    except OSError as error:
        hint = None
        if not read_only and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            hint = f"use {option} {path},ro to read it only" if os.access(path, os.R_OK) else None
        if error.errno == errno.EBUSY:
            hint = "unmount it: it is mounted, or a part of a mounted device"
        raise UsageError(f"{option} {path}: {error.strerror}", hint=hint) from error


def _directory(option: str, path: Path) -> UsageError:
    return UsageError(
        f"{option} {path} is a directory",
        hint="make an image of it with mke2fs -d DIR: pyvmm lacks 9p",
    )


class _Span:
    """Buffers as one byte sequence with a position; a context manager releases its views."""

    def __init__(self, buffers: Buffers) -> None:
        self._rest = list(buffers)
        self._own: list[memoryview] = []
        self.left = sum(map(len, buffers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for view in self._own:
            view.release()

    @property
    def rest(self) -> list[memoryview]:
        """The buffers from the position on."""
        return self._rest

    def advance(self, count: int) -> None:
        """Move the position by ``count`` bytes."""
        self.left -= count
        while count and count >= len(self._rest[0]):
            count -= len(self._rest.pop(0))
        if count:
            self._rest[0] = self._rest[0][count:]
            self._own.append(self._rest[0])

    def copy(self, other: memoryview, *, into: bool) -> None:
        """Copy ``other`` to the position, or with ``into`` the reverse; advance the position."""
        done = 0
        while done < len(other):
            count = min(len(self._rest[0]), len(other) - done)
            if into:
                other[done : done + count] = self._rest[0][:count]
            else:
                self._rest[0][:count] = other[done : done + count]
            self.advance(count)
            done += count


def _transfer(fd: int, span: _Span, offset: int, write_flags: int | None = None) -> None:
    """Read until the buffers are full, or with ``write_flags`` write all of their bytes."""
    while span.left:
        if write_flags is None:
            count = os.preadv(fd, span.rest, offset)
        else:
            count = os.pwritev(fd, span.rest, offset, write_flags)
        if not count:
            reading = write_flags is None
            reason = "the file has become shorter" if reading else "nothing could be written"
            raise OSError(errno.EIO, reason)
        span.advance(count)
        offset += count
