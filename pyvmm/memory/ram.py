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

# Source: asm-generic/mman.h, the same on arm64 and x86; in the mmap module from Python 3.13 on
MAP_NORESERVE = 0x4000

MADV_REMOVE = 9  # Source: asm-generic/mman-common.h; pages of a shared file read as zero after it
_MAP_FIXED = 0x10  # Source: Linux, asm-generic/mman-common.h
_MAP_FAILED = ctypes.c_void_p(-1).value

HUGE_PAGE = 2 * MIB  # a block of the guest's stage 2 tables when pages are 4 KiB


class Memory(Protocol):
    """Memory that a guest's devices may address: GuestMemory, or several pieces (map.py)."""

    def contains(self, gpa: int, length: int) -> bool:
        """Return whether all of the ``length`` bytes at ``gpa`` are in this memory."""

    def view(self, gpa: int, length: int) -> memoryview:
        """Return a view of the memory at ``gpa``."""

    def discard(self, gpa: int, length: int) -> None:
        """Return the whole pages of a range to the host; their content is lost."""

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Enable or disable transparent huge pages in a range."""


class OutOfRange(GuestError):
    """An address range that is not completely in guest RAM."""

    def __init__(self, gpa: int, length: int, where: str) -> None:
        super().__init__(f"{length:#x} bytes at guest address {gpa:#x} are not in RAM ({where})")
        self.gpa = gpa
        self.length = length


class GuestMemory(Closing):
    """The RAM of one machine, zero until written; a context manager that unmaps it.

    ``host_address`` is aligned to 2 MiB, and transparent huge pages are enabled: with a guest base
    of the same alignment one guest fault maps 2 MiB. Pages take memory of the host when they are
    first used, so ``size`` may exceed it. Only vm.overcommit_memory=2 counts all of them. Every
    access is checked: nothing outside ``base`` to ``end`` is touched.
    """

    OutOfRange = OutOfRange

    def __init__(
        self,
        base: int,
        size: int,
        *,
        huge_pages: Path | None = None,
        shared: bool = False,
        field: str = "memory",
    ) -> None:
        """Map ``size`` bytes for the guest physical addresses from ``base``.

        With ``huge_pages``, the mount point of a hugetlbfs, all pages are from there. ``shared``
        memory is a file without a name, ``shared_fd``, for processes that serve the guest. Errors
        name ``field`` of the Config, which requests the memory.

        Raises:
            UsageError: ``base`` or ``size`` is not a whole number of host pages.
            HostError: the kernel refuses to map that much memory.
        """
        if size <= 0 or base < 0 or size % mmap.PAGESIZE or base % mmap.PAGESIZE:
            raise UsageError(
                f"guest memory of {size:#x} bytes at {base:#x}: both must be whole pages of this "
                f"machine ({mmap.PAGESIZE // 1024} KiB), and the size must not be zero"
            )
        self.base = base
        self.size = size
        self.end = base + size
        self._is_hugetlbfs = huge_pages is not None
        self.shared_fd = -1
        self._backed: list[tuple[int, int]] = []
        if huge_pages is None:
            self._mapping = _map(size + HUGE_PAGE, field)  # with room to align
            start = _address(self._mapping)
            self.host_address = (start + HUGE_PAGE - 1) & -HUGE_PAGE
            self._offset = self.host_address - start
            if shared:
                self.shared_fd = _sealed_file(size)
                self._map_shared()
        else:
            from pyvmm.memory import hugetlbfs

            self._mapping = hugetlbfs.map_pages(huge_pages, size)
            self.host_address, self._offset = _address(self._mapping), 0
        self._written: bytearray | None = None
        self.log_word = ctypes.c_uint64()  # the address of the log's first byte, for C; 0: no log
        self._ram = memoryview(self._mapping)[self._offset : self._offset + size]
        if not self._is_hugetlbfs:
            with contextlib.suppress(OSError):  # no transparent huge pages: slower, not wrong
                self._mapping.madvise(mmap.MADV_HUGEPAGE, self._offset, size)

    def close(self) -> None:
        """Unmap the RAM; idempotent.

        Raises:
            BufferError: a view is still in use.
        """
        self._ram.release()
        self._mapping.close()
        if self.shared_fd >= 0:
            os.close(self.shared_fd)
            self.shared_fd = -1

    def contains(self, gpa: int, length: int) -> bool:
        """Return whether all of the ``length`` bytes at ``gpa`` are RAM."""
        return self.base <= gpa and length >= 0 and gpa + length <= self.end

    def view(self, gpa: int, length: int) -> memoryview:
        """Return a view of the RAM at ``gpa``; release it before closing the memory."""
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        if self._written is not None:
            self._log(gpa, length)
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
        """Read ``length`` bytes at ``offset`` of a file into the guest; return how many were read.

        Use this, not write(), for code: the kernel copies directly into RAM. glibc's memcpy uses
        SVE stores. Under QEMU 7.2 these leave stale translations of the pages' code, because
        probe_access() reports only the first byte to the translator.
        """
        done = 0
        with self.view(gpa, length) as view:
            while done < length and (count := os.preadv(fd, [view[done:]], offset + done)):
                done += count
        return done

    def load_from(self, gpa: int, length: int, file: BinaryIO, offset: int) -> int:
        """Load from any file, as load() does; a file without a descriptor is copied first."""
        try:
            return self.load(gpa, length, file.fileno(), offset)
        except io.UnsupportedOperation:
            pass
        file.seek(offset)
        with os.fdopen(os.memfd_create("image", os.MFD_CLOEXEC), "wb", buffering=0) as copy:
            length = copy.write(file.read(length))
            return self.load(gpa, length, copy.fileno(), 0)

    def log_writes(self) -> None:
        """Record from now on which pages this process may write; see `written`.

        Making a view counts as a write. C logs its own writes at the address in ``log_word``. So
        the log never moves, and no request may be in flight during this call.
        """
        pages = self.size // mmap.PAGESIZE
        if self._written is None:
            self._written = bytearray(pages)
            self._log_start = ctypes.c_char.from_buffer(self._written)
            self.log_word.value = ctypes.addressof(self._log_start)
        else:
            self._written[:] = bytes(pages)

    @property
    def written(self) -> bytes:
        """A byte for each host page: 1 if this process may have written it since `log_writes`."""
        return bytes(self._written or b"")

    def _log(self, gpa: int, length: int) -> None:
        if self._written is not None and length:
            first = (gpa - self.base) // mmap.PAGESIZE
            pages = (gpa - self.base + length - 1) // mmap.PAGESIZE - first + 1
            self._written[first : first + pages] = b"\1" * pages

    @property
    def takes_files(self) -> bool:
        """Whether files can be mapped into this memory."""
        return not self._is_hugetlbfs and self.shared_fd < 0

    @property
    def backed(self) -> list[tuple[int, int]]:
        """The address ranges whose pages have content even if untouched."""
        return [(self.base, self.end)] if self._is_hugetlbfs else list(self._backed)

    def map_file(self, gpa: int, length: int, fd: int, offset: int) -> None:
        """Map a file's bytes as private RAM: each page is read on its first use.

        All three numbers are whole host pages. The file must keep its length while it is in use:
        an access to a page past its end kills the process with SIGBUS.

        Raises: HostError, if the kernel refuses, for example because of too many mappings.
        """
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        self._map_over(gpa, length, fd, offset)
        self._backed.append((gpa, gpa + length))

    def _map_over(self, gpa: int, length: int, fd: int, offset: int) -> None:
        """Replace the pages by a private mapping of a file; with fd -1 they are zero."""
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | MAP_NORESERVE
        flags |= mmap.MAP_ANONYMOUS if fd < 0 else 0
        address = self.host_address + gpa - self.base
        access = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc_mmap()(address, length, access, flags, fd, offset) == _MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise HostError(
                f"cannot map {length:#x} bytes of a file to guest address {gpa:#x}: {reason}",
                hint="raise the limit in /proc/sys/vm/max_map_count",
            )

    def _map_shared(self) -> None:
        """Replace the private pages by those of the shared file."""
        access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
        where = (self.host_address, self.size, access, flags, self.shared_fd, 0)
        if _libc_mmap()(*where) == _MAP_FAILED:
            raise HostError(f"cannot map shared memory: {os.strerror(ctypes.get_errno())}")

    def zero(self, gpa: int, length: int) -> None:
        """Set ``length`` bytes to zero; whole pages are returned to the host instead."""
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        end = gpa + length
        if self._is_hugetlbfs:  # these pages cannot be returned
            self._clear(gpa, length)
            return
        first_page = min(-(-gpa // mmap.PAGESIZE) * mmap.PAGESIZE, end)
        last_page = max(end // mmap.PAGESIZE * mmap.PAGESIZE, first_page)
        self.write(gpa, bytes(first_page - gpa))
        if last_page > first_page:
            self._return_pages(first_page, last_page - first_page)
        self.write(last_page, bytes(end - last_page))

    def discard(self, gpa: int, length: int) -> None:
        """Return the whole pages of a range to the host; the next access reads zeros.

        Pages of a hugetlbfs and pages partly in the range keep their content.

        Raises: OutOfRange.
        """
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        start = -(-gpa // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (gpa + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start and not self._is_hugetlbfs:
            self._return_pages(start, end - start)

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Enable or disable transparent huge pages in a range of whole pages; enabled at first.

        The kernel may ignore this.

        Raises: OutOfRange.
        """
        if not self.contains(gpa, length):
            raise self._out_of_range(gpa, length)
        if not self._is_hugetlbfs:
            with contextlib.suppress(OSError):
                self._advise(mmap.MADV_HUGEPAGE if prefer else mmap.MADV_NOHUGEPAGE, gpa, length)

    def _return_pages(self, gpa: int, length: int) -> None:
        """Return whole pages to the host; they read as zero from then on."""
        self._log(gpa, length)
        if self.shared_fd >= 0:
            self._advise(MADV_REMOVE, gpa, length)
            return
        if not self._backed:
            # Source: madvise(2): private anonymous pages read as zero after MADV_DONTNEED.
            self._advise(mmap.MADV_DONTNEED, gpa, length)
            return
        try:  # after MADV_DONTNEED pages of a file would have the file's content again
            self._map_over(gpa, length, -1, 0)
        except HostError:  # too many mappings: keep the pages
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


def _map(length: int, field: str) -> mmap.mmap:
    """Make an anonymous private mapping of ``length`` bytes, or raise a HostError."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        return mmap.mmap(-1, length, flags=flags)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except (OverflowError, ValueError):
        reason = "more than an address space can hold"
    raise HostError(
        f"cannot map {_mib(length - HUGE_PAGE)} of guest memory: {reason}",
        hint=f"{_describe_host_memory()}; use a smaller `{field}`",
    )


@functools.cache
def _libc_mmap() -> Callable[..., int | None]:
    """Return mmap(2), because Python's mmap takes no address."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    number, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = (pointer, size, number, number, number, ctypes.c_int64)
    function.restype = pointer
    return function


def _sealed_file(size: int) -> int:
    """Return a file in memory that no process can truncate: a truncated one would end the VM."""
    import fcntl  # lazily: few guests have shared memory

    fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
                    | fcntl.F_SEAL_SEAL)  # fmt: skip
    except OSError as error:
        os.close(fd)
        raise HostError(
            f"cannot make {_mib(size)} of shared memory: {error.strerror}",
            hint=_describe_host_memory(),
        ) from error
    return fd


def _address(mapping: mmap.mmap) -> int:
    """Return the mapping's address in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def warn_of_size(size: int) -> str | None:
    """Return a warning, if guest memory of ``size`` bytes is more than the host has with swap."""
    if size <= os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE:
        return None
    has = _meminfo()
    host = has["MemTotal"] + has.get("SwapTotal", 0)
    if size <= host:
        return None
    return (
        f"{_mib(size)} of guest memory, and the host has {_mib(host)} with swap: if the guest uses "
        "more, the host's out-of-memory killer may end it"
    )


def _meminfo() -> dict[str, int]:
    """Return the sizes in /proc/meminfo in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): int(kib) << 10 for name, kib, *_ in fields}


def _describe_host_memory() -> str:
    """Return the machine's memory and overcommit policy, as a clause for a hint."""
    has = _meminfo()
    policy = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip()
    counted = _MEMINFO | (_COMMIT if policy == "2" else {})
    sizes = [f"{_mib(has[name])} {what}" for name, what in counted.items() if name in has]
    return f"the host has {', '.join(sizes)} (vm.overcommit_memory={policy})"


# Fields of /proc/meminfo.  Source: proc_meminfo(5)
_MEMINFO = {"MemTotal": "of memory", "MemAvailable": "available", "SwapTotal": "of swap"}
_COMMIT = {"CommitLimit": "for all processes to ask for", "Committed_AS": "of that in use"}


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"
