"""Guest RAM: one private, anonymous mapping, addressed by guest physical address."""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pyvmm import hugetlbfs
from pyvmm.errors import GuestError, HostError, UsageError
from pyvmm.layout import MIB

HUGE_PAGE = 2 * MIB  # a block of the guest's stage 2 tables when pages are 4 KiB


class OutOfRange(GuestError):
    """An address range that is not, or not wholly, guest RAM."""

    def __init__(self, gpa: int, length: int, memory: GuestMemory) -> None:
        super().__init__(
            f"{length:#x} bytes at guest address {gpa:#x} are not in RAM "
            f"({memory.base:#x} to {memory.end:#x})"
        )
        self.gpa = gpa
        self.length = length


class GuestMemory:
    """The RAM of one machine, zero until written; a context manager that unmaps it.

    ``host_address`` is aligned to 2 MiB and huge pages are asked for, so that with a guest base
    of the same alignment one fault of the guest maps 2 MiB at once. How much may be promised
    is left to the kernel's overcommit policy.

    Every access is checked: nothing outside ``base`` to ``end`` is ever touched.
    """

    OutOfRange = OutOfRange

    def __init__(self, base: int, size: int, *, huge_pages: Path | None = None) -> None:
        """Map ``size`` bytes for the guest physical addresses from ``base``.

        With ``huge_pages``, the mount point of a hugetlbfs, all of it is pages from there.

        Raises:
            UsageError: ``base`` or ``size`` is not a whole number of host pages.
            HostError: the kernel does not promise that much memory.
        """
        if size <= 0 or base < 0 or size % mmap.PAGESIZE or base % mmap.PAGESIZE:
            raise UsageError(
                f"guest memory of {size:#x} bytes at {base:#x}: both must be whole pages of this "
                f"machine ({mmap.PAGESIZE // 1024} KiB), and the size not zero"
            )
        self.base = base
        self.size = size
        self.end = base + size
        self._reserved = huge_pages is not None
        if huge_pages is None:
            self._mapping = _map(size + HUGE_PAGE)  # room to align: mmap takes no address
            start = _address(self._mapping)
            self.host_address = (start + HUGE_PAGE - 1) & -HUGE_PAGE
            self._offset = self.host_address - start
        else:
            self._mapping = hugetlbfs.map_pages(huge_pages, size)
            self.host_address, self._offset = _address(self._mapping), 0
        self._ram = memoryview(self._mapping)[self._offset : self._offset + size]
        if not self._reserved:
            with contextlib.suppress(OSError):  # no transparent huge pages: slower, not wrong
                self._mapping.madvise(mmap.MADV_HUGEPAGE, self._offset, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the RAM; once is enough, twice is harmless.

        Raises:
            BufferError: a view is still in use.
        """
        self._ram.release()
        self._mapping.close()

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all of the ``length`` bytes at ``gpa`` are RAM."""
        return self.base <= gpa and length >= 0 and gpa + length <= self.end

    def view(self, gpa: int, length: int) -> memoryview:
        """The RAM itself at ``gpa``, without a copy; release it before closing the memory."""
        if not self.contains(gpa, length):
            raise OutOfRange(gpa, length, self)
        start = gpa - self.base
        return self._ram[start : start + length]

    def read(self, gpa: int, length: int) -> bytes:
        """Copy ``length`` bytes out of the guest."""
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` into the guest."""
        with memoryview(data).cast("B") as source:
            self.view(gpa, len(source))[:] = source

    def load(self, gpa: int, length: int, fd: int, offset: int) -> int:
        """Read ``length`` bytes at ``offset`` of a file into the guest; returns how many came.

        This, and not write(), is for code: the kernel copies straight into RAM.  Under QEMU 7.2
        a copy made with SVE stores, as glibc's memcpy is, leaves old translations of the pages'
        code alive (probe_access() tells the translator of the first byte only).
        """
        done = 0
        with self.view(gpa, length) as view:
            while done < length and (came := os.preadv(fd, [view[done:]], offset + done)):
                done += came
        return done

    def load_from(self, gpa: int, length: int, file: BinaryIO, offset: int) -> int:
        """Like load(), from any kind of file; one without a descriptor is copied to one first."""
        try:
            return self.load(gpa, length, file.fileno(), offset)
        except io.UnsupportedOperation:
            pass
        file.seek(offset)
        with os.fdopen(os.memfd_create("image", os.MFD_CLOEXEC), "wb", buffering=0) as copy:
            length = copy.write(file.read(length))
            return self.load(gpa, length, copy.fileno(), 0)

    def zero(self, gpa: int, length: int) -> None:
        """Make ``length`` bytes zero; whole pages go back to the host instead of being written."""
        if not self.contains(gpa, length):
            raise OutOfRange(gpa, length, self)
        end = gpa + length
        if self._reserved:  # those pages are the guest's for good
            self._clear(gpa, length)
            return
        first_page = min(-(-gpa // mmap.PAGESIZE) * mmap.PAGESIZE, end)
        last_page = max(end // mmap.PAGESIZE * mmap.PAGESIZE, first_page)
        self.write(gpa, bytes(first_page - gpa))
        if last_page > first_page:
            # Source: madvise(2): private anonymous pages read as zero after MADV_DONTNEED.
            start = self._offset + first_page - self.base
            self._mapping.madvise(mmap.MADV_DONTNEED, start, last_page - first_page)
        self.write(last_page, bytes(end - last_page))

    def _clear(self, gpa: int, length: int) -> None:
        for start in range(gpa, gpa + length, MIB):
            self.write(start, bytes(min(MIB, gpa + length - start)))


def _map(length: int) -> mmap.mmap:
    """An anonymous private mapping of ``length`` bytes, or a HostError that says why not."""
    try:
        return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except (OverflowError, ValueError):
        reason = "more than an address space can hold"
    raise HostError(
        f"cannot map {_mib(length - HUGE_PAGE)} of guest memory: {reason}",
        hint=f"{_what_the_machine_has()}; use a smaller -m",
    )


def _address(mapping: mmap.mmap) -> int:
    """Where the mapping starts in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def _what_the_machine_has() -> str:
    """The machine's memory and overcommit policy, as a clause for a hint."""
    kib = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    policy = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip()
    has = [f"{_mib(kib[name] << 10)} {what}" for name, what in _MEMINFO.items() if name in kib]
    return f"the host has {', '.join(has)} (vm.overcommit_memory={policy})"


# Fields of /proc/meminfo.  Source: proc_meminfo(5)
_MEMINFO = {"MemTotal": "of memory", "MemAvailable": "available", "SwapTotal": "of swap"}


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"
