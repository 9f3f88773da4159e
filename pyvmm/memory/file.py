"""A file's content as memory of the guest's: what it writes there is in the file."""

from __future__ import annotations

import ctypes
import mmap
import os

from pyvmm.base.closing import Closing
from pyvmm.errors import HostError
from pyvmm.memory.ram import OutOfRange


class FileMemory(Closing):
    """An open file mapped for the guest physical addresses from ``base``.

    One that is ``read_only`` is a private copy, page by page as somebody writes: the guest is to
    see it through a slot it cannot write to, and nothing comes into the file. A context manager
    that unmaps it.
    """

    def __init__(self, fd: int, base: int, size: int, *, read_only: bool = False) -> None:
        """Map ``size`` bytes.

        Raises: HostError, when the file cannot be mapped.
        """
        self.base = base
        self.size = size
        self.end = base + size
        self._fd = fd
        kind = mmap.MAP_PRIVATE if read_only else mmap.MAP_SHARED
        try:
            self._mapping = mmap.mmap(fd, size, flags=kind, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise HostError(
                f"cannot map {size >> 20} MiB of a file: {error.strerror}",
                hint="its file system may not have shared mappings, as 9p with cache=none",
            ) from error
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self._view = memoryview(self._mapping)

    def close(self) -> None:
        """Unmap the memory; no view of it may be in use."""
        self._view.release()
        self._mapping.close()

    @property
    def missing(self) -> int:
        """How many bytes the file has become too short by; an access to them has no answer."""
        return max(0, self.size - os.lseek(self._fd, 0, os.SEEK_END))

    @property
    def is_full(self) -> bool:
        """Whether the file's file system has no room: a write to a hole of it has no answer."""
        return os.fstatvfs(self._fd).f_bavail == 0

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all of the ``length`` bytes at ``gpa`` are there."""
        return self.base <= gpa and length >= 0 and gpa + length <= self.end

    def view(self, gpa: int, length: int) -> memoryview:
        """The memory itself at ``gpa``, without a copy."""
        if not self.contains(gpa, length):
            raise OutOfRange(gpa, length, f"{self.base:#x} to {self.end:#x}")
        start = gpa - self.base
        return self._view[start : start + length]

    def discard(self, gpa: int, length: int) -> None:
        """Give nothing back: what is in the file stays."""

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Leave the pages to the file system."""
