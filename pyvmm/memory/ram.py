"""Guest RAM: one private, anonymous mapping, addressed by guest physical address."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from pyvmm.base.closing import Closing
from pyvmm.errors import GuestError, HostError, UsageError
from pyvmm.layout import MIB

# Source: asm-generic/mman.h, the same on arm64 and x86; the mmap module has it from Python 3.13 on
MAP_NORESERVE = 0x4000

_MAP_FIXED = 0x10  # Source: Linux, asm-generic/mman-common.h
_MAP_FAILED = ctypes.c_void_p(-1).value

HUGE_PAGE = 2 * MIB  # a block of the guest's stage 2 tables when pages are 4 KiB


class Memory(Protocol):
    """What a guest's devices may address: GuestMemory, or several pieces of it (memorymap.py)."""

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all of the ``length`` bytes at ``gpa`` are there."""

    def view(self, gpa: int, length: int) -> memoryview:
        """The memory itself at ``gpa``, without a copy."""

    def discard(self, gpa: int, length: int) -> None:
        """Give the whole pages of a range back to the host; what was in them is lost."""

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Ask for transparent huge pages there, or for none."""


class OutOfRange(GuestError):
    """An address range that is not, or not wholly, guest RAM."""

    def __init__(self, gpa: int, length: int, where: str) -> None:
        super().__init__(f"{length:#x} bytes at guest address {gpa:#x} are not in RAM ({where})")
        self.gpa = gpa
        self.length = length


class GuestMemory(Closing):
    """The RAM of one machine, zero until written; a context manager that unmaps it.

    ``host_address`` is aligned to 2 MiB and huge pages are asked for, so that with a guest base
    of the same alignment one fault of the guest maps 2 MiB at once. How much may be promised
    is left to the kernel's overcommit policy.

    Every access is checked: nothing outside ``base`` to ``end`` is ever touched.
    """

    OutOfRange = OutOfRange

    def __init__(
        self, base: int, size: int, *, huge_pages: Path | None = None, promised: bool = True
    ) -> None:
        """Map ``size`` bytes for the guest physical addresses from ``base``.

        With ``huge_pages``, the mount point of a hugetlbfs, all of it is pages from there. What
        is not ``promised`` is addresses alone: the kernel's overcommit policy does not count it.

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
        self._promised = promised
        self._backed: list[tuple[int, int]] = []
        if huge_pages is None:
            self._mapping = _map(size + HUGE_PAGE, promised)  # room to align: mmap takes no address
            start = _address(self._mapping)
            self.host_address = (start + HUGE_PAGE - 1) & -HUGE_PAGE
            self._offset = self.host_address - start
        else:
            from pyvmm.memory import hugetlbfs

            self._mapping = hugetlbfs.map_pages(huge_pages, size)
            self.host_address, self._offset = _address(self._mapping), 0
        self._noted: bytearray | None = None
        self._ram = memoryview(self._mapping)[self._offset : self._offset + size]
        if not self._reserved:
            with contextlib.suppress(OSError):  # no transparent huge pages: slower, not wrong
                self._mapping.madvise(mmap.MADV_HUGEPAGE, self._offset, size)

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
            raise self._out_of_range(gpa, length)
        if self._noted is not None:
            self._note(gpa, length)
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

    def note_writes(self) -> None:
        """Note from now on which pages this process may have written to: see `noted`.

        A view counts as written to when it is made, whatever becomes of it.
        """
        self._noted = bytearray(self.size // mmap.PAGESIZE)

    @property
    def noted(self) -> bytes:
        """For each host page 1 where it may have been written to since `note_writes`."""
        return bytes(self._noted or b"")

    def _note(self, gpa: int, length: int) -> None:
        if self._noted is not None and length:
            first = (gpa - self.base) // mmap.PAGESIZE
            pages = (gpa - self.base + length - 1) // mmap.PAGESIZE - first + 1
            self._noted[first : first + pages] = b"\1" * pages

    @property
    def takes_files(self) -> bool:
        """Whether a file's bytes can be had here without a copy."""
        return not self._reserved

    @property
    def backed(self) -> list[tuple[int, int]]:
        """Guest addresses, from and to, whose pages hold something though nobody used them yet."""
        return [(self.base, self.end)] if self._reserved else list(self._backed)

    def map_file(self, gpa: int, length: int, fd: int, offset: int) -> None:
        """Have a file's bytes as RAM: each page is read when it is first used, and written apart.

        All three numbers are whole host pages.  The file must keep its length as long as it is
        in use: a page behind its end ends the process with SIGBUS.

        Raises:
            HostError: the kernel does not map it, as when there are too many mappings.
        """
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        self._map_over(gpa, length, fd, offset)
        self._backed.append((gpa, gpa + length))

    def _map_over(self, gpa: int, length: int, fd: int, offset: int) -> None:
        """Put another private mapping in the place of the pages; fd -1 is zeros."""
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
        flags |= 0 if self._promised else MAP_NORESERVE
        address = self.host_address + gpa - self.base
        access = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc_mmap()(address, length, access, flags, fd, offset) == _MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise HostError(
                f"cannot map {length:#x} bytes of a file to guest address {gpa:#x}: {reason}",
                hint="/proc/sys/vm/max_map_count limits how many mappings there can be",
            )

    def zero(self, gpa: int, length: int) -> None:
        """Make ``length`` bytes zero; whole pages go back to the host instead of being written."""
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        end = gpa + length
        if self._reserved:  # those pages are the guest's for good
            self._clear(gpa, length)
            return
        first_page = min(-(-gpa // mmap.PAGESIZE) * mmap.PAGESIZE, end)
        last_page = max(end // mmap.PAGESIZE * mmap.PAGESIZE, first_page)
        self.write(gpa, bytes(first_page - gpa))
        if last_page > first_page:
            self._give_back(first_page, last_page - first_page)
        self.write(last_page, bytes(end - last_page))

    def discard(self, gpa: int, length: int) -> None:
        """Give the whole pages of a range back to the host: the next access finds zeroes.

        Nothing happens to pages of a hugetlbfs, nor to pages of which only a part is meant.

        Raises: OutOfRange.
        """
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        start = -(-gpa // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (gpa + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start and not self._reserved:
            self._give_back(start, end - start)

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Ask for transparent huge pages in a range of whole pages, as is so at first, or for none.

        A wish: a kernel that has none, or no room to note it, goes on as before.

        Raises: OutOfRange.
        """
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        if not self._reserved:
            with contextlib.suppress(OSError):
                self._advise(mmap.MADV_HUGEPAGE if prefer else mmap.MADV_NOHUGEPAGE, gpa, length)

    def _give_back(self, gpa: int, length: int) -> None:
        """Let whole pages go; they read as zero from then on."""
        self._note(gpa, length)
        if not self._backed:
            # Source: madvise(2): private anonymous pages read as zero after MADV_DONTNEED.
            self._advise(mmap.MADV_DONTNEED, gpa, length)
            return
        try:  # what DONTNEED lets go of a file's pages is the file's content again
            self._map_over(gpa, length, -1, 0)
        except HostError:  # too many mappings: then the pages stay
            self._clear(gpa, length)
            return
        self.prefer_huge_pages(gpa, length, True)

    def _advise(self, advice: int, gpa: int, length: int) -> None:
        self._mapping.madvise(advice, self._offset + gpa - self.base, length)

    def _out_of_range(self, gpa: int, length: int) -> GuestError:
        return OutOfRange(gpa, length, f"{self.base:#x} to {self.end:#x}")

    def _clear(self, gpa: int, length: int) -> None:
        for start in range(gpa, gpa + length, MIB):
            self.write(start, bytes(min(MIB, gpa + length - start)))


def _map(length: int, promised: bool) -> mmap.mmap:
    """An anonymous private mapping of ``length`` bytes, or a HostError that says why not."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(-1, length, flags=flags if promised else flags | MAP_NORESERVE)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except (OverflowError, ValueError):
        reason = "more than an address space can hold"
    raise HostError(
        f"cannot map {_mib(length - HUGE_PAGE)} of guest memory: {reason}",
        hint=f"{_what_the_machine_has()}; use a smaller {'-m' if promised else '--hotplug'}",
    )


@functools.cache
def _libc_mmap() -> Callable[..., int | None]:
    """mmap(2) itself: Python's takes no address."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    number, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = (pointer, size, number, number, number, ctypes.c_int64)
    function.restype = pointer
    return function


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
