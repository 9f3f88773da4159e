"""A file as guest memory: the guest's writes go to the file."""

from __future__ import annotations

import ctypes
import mmap
import os

from pyvmm.base.closing import Closing
from pyvmm.errors import HostError
from pyvmm.memory.ram import OutOfRange


class FileMemory(Closing):
    """An open file mapped for the guest physical addresses from ``base``.

    A ``read_only`` mapping is private: writes never reach the file. The guest gets it in a
    read-only memory slot. A context manager that unmaps the file.
    """

    def __init__(self, fd: int, base: int, size: int, *, read_only: bool = False) -> None:
        """Map ``size`` bytes.

        Raises: HostError, if the file cannot be mapped.
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
                hint="use a file system with shared mappings: 9p with cache=none has none",
            ) from error
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self._view = memoryview(self._mapping)

    def close(self) -> None:
        """Unmap the memory; no view of it may be in use."""
        self._view.release()
        self._mapping.close()

    @property
    def missing(self) -> int:
        """The number of bytes that the file lost after it was mapped; an access to them fails."""
        return max(0, self.size - os.lseek(self._fd, 0, os.SEEK_END))

    @property
    def is_full(self) -> bool:
        """Whether the file system is full: a write to a hole of the file fails."""
        return os.fstatvfs(self._fd).f_bavail == 0

    def contains(self, gpa: int, length: int) -> bool:
        """Return whether all of the ``length`` bytes at ``gpa`` are in the file."""
        return self.base <= gpa and length >= 0 and gpa + length <= self.end

    def view(self, gpa: int, length: int) -> memoryview:
        """Return a view of the memory at ``gpa``."""
        if not self.contains(gpa, length):
            raise OutOfRange(gpa, length, f"{self.base:#x} to {self.end:#x}")
        start = gpa - self.base
        return self._view[start : start + length]

    def discard(self, gpa: int, length: int) -> None:
        """Do nothing: the file keeps its content."""

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Do nothing: the file system chooses its pages."""
