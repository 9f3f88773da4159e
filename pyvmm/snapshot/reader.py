"""Reading of snapshot files: each part is checked against its SHA-256 before it is used."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import itertools
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

from pyvmm.base.closing import Closing
from pyvmm.errors import UsageError
from pyvmm.memory.ranges import Range, merged, without
from pyvmm.snapshot import format
from pyvmm.snapshot.codec import Damaged
from pyvmm.snapshot.format import BLOCK, PAGE, Header
from pyvmm.snapshot.mark import own_key

WORKERS: Final = 4
RECENT: Final = 4  # blocks in the cache
MOST_PARENTS: Final = 200  # each is an open file
J = TypeVar("J")
R = TypeVar("R")

DAMAGE_HINT: Final = "use another copy of the file"


class Placed(NamedTuple):
    """A piece of guest memory at ``offset`` in a file of a chain."""

    gpa: int
    length: int
    file: SnapshotFile
    offset: int


class SnapshotFile(Closing):
    """One snapshot, open for reading; a context manager that closes it and its parents.

    ``document`` is the machine's state.  ``identity`` is the SHA-256 that covers the whole file.
    """

    def __init__(self, path: Path, fd: int) -> None:
        """Check everything except memory; close() closes the descriptor."""
        self.path = path
        self.fd = fd
        self.parent: SnapshotFile | None = None
        self._recent_block = functools.lru_cache(RECENT)(self.read_block)
        self._placed: list[Placed] | None = None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError("not a regular file")
        if status.st_size < PAGE:
            raise Damaged("too short to be a snapshot" if status.st_size else "the file is empty")
        first = format.read_exactly(fd, 0, PAGE)
        self.header, self.identity, self.version = Header.unpack(first)
        if status.st_size != self.header.memory.end:
            raise Damaged(
                f"the file has {status.st_size} bytes instead of {self.header.memory.end}"
            )
        self.document: dict[str, Any] = format.parse_json(self._section("state"), "its state")
        index = self._section("index")
        self.extents, self.hashes = format.unpack_index(index, self.header)
        self.blocks = format.blocks(self.header.memory)

    @classmethod
    def open(cls, path: Path, *, trust: bool = False) -> Self:
        """Open a snapshot and its parents.

        Raises:
            ForeignParent: a parent is in another directory, this user did not save the snapshot
                that names it, and does not ``trust`` it.
            UsageError: a file is damaged or not a snapshot, or a parent is missing.
        """
        file = cls.alone(path)
        try:
            child, left = file, MOST_PARENTS
            while child.header.parent is not None:
                if not left:
                    raise UsageError(f"{path}: more than {MOST_PARENTS} parents")
                where = child._parent_path(child.header.parent)
                if not trust and not beside(where, child.path) and not child.is_own:
                    raise ForeignParent(file, where)
                child.parent = child._open_parent(child.header.parent, where)
                child, left = child.parent, left - 1
        except BaseException:
            file.close()
            raise
        return file

    @classmethod
    def of_chain(cls, files: Sequence[tuple[Path, int]]) -> Self:
        """Return a snapshot whose parents, and theirs, are open too; it closes all of them.

        Raises: UsageError, if a file is damaged, or one is not the parent of the file before it.
        """
        chain: list[Self] = []
        with contextlib.ExitStack() as undo:
            for _, fd in files:
                undo.callback(os.close, fd)
            for path, fd in files:
                with path_in_errors(path):
                    chain.append(cls(path, fd))
            for child, parent in itertools.zip_longest(chain, chain[1:]):
                wanted = child.header.parent
                if (wanted and wanted.sha256) != (parent and parent.identity):
                    raise UsageError(f"{child.path}: these are not the files of its chain")
                child.parent = parent
            undo.pop_all()
        return chain[0]

    @classmethod
    def alone(cls, path: Path) -> Self:
        """Open one file without its parents; errors have its path."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a device can have side effects
                raise UsageError(f"{path}: not a regular file")
            # O_NONBLOCK: opening a pipe would wait for its writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            with path_in_errors(path):
                return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    @functools.cached_property
    def is_own(self) -> bool:
        """Whether the file has the mark of this user.

        Raises: HostError, if others may know the user's key.
        """
        if self.header.mark is None or (key := own_key()) is None:
            return False
        return hmac.compare_digest(self.header.mark, self.header.mark_with(key))

    def _parent_path(self, wanted: format.Parent) -> Path:
        place = Path(os.path.realpath(self.path)).parent
        return Path(os.path.realpath(place / wanted.path))

    def _open_parent(self, wanted: format.Parent, path: Path) -> Self:
        """Open the parent, and check its identity."""
        hint = "put the parent back: an incremental snapshot needs that file unchanged"
        try:
            parent = self.alone(path)
        except UsageError as error:
            raise type(error)(f"{self.path}: its parent: {error.message}", hint=hint) from None
        if parent.identity != wanted.sha256:
            parent.close()
            raise UsageError(
                f"{self.path}: its parent {path} has changed: it is snapshot "
                f"{parent.identity[:12]}, not {wanted.sha256[:12]}",
                hint=hint,
            )
        return parent

    def close(self) -> None:
        """Close the file and its parents; mappings stay.  Idempotent."""
        for file in self.chain():
            if file.fd >= 0:
                os.close(file.fd)
                file.fd = -1
                file._recent_block.cache_clear()

    def chain(self) -> list[SnapshotFile]:
        """Return the file and its parents, the oldest first."""
        files: list[SnapshotFile] = [self]
        while (parent := files[-1].parent) is not None:
            files.append(parent)
        return files[::-1]

    def _section(self, name: str) -> bytes:
        """Read and check the state or the index."""
        section: format.StateSection | format.Index = getattr(self.header, name)
        data = format.read_exactly(self.fd, section.offset, section.length)
        if format.sha256(data) != section.sha256:
            raise Damaged(f"its {name} is damaged: the SHA-256 differs", hint=DAMAGE_HINT)
        return data

    # Where guest memory is stored

    def placed(self) -> list[Placed]:
        """Return all stored memory of the chain, sorted by guest address, without overlaps."""
        if self._placed is None:
            found: list[Placed] = []
            covered: list[Range] = []
            for file in reversed(self.chain()):
                ranges = [(extent.gpa, extent.end) for extent in file.extents]
                extents = iter(file.extents)
                extent = next(extents, None)
                for low, high in without(ranges, covered):
                    while extent is not None and extent.end <= low:
                        extent = next(extents, None)
                    assert extent is not None
                    if extent.offset:
                        offset = extent.offset + low - extent.gpa
                        found.append(Placed(low, high - low, file, offset))
                covered = merged([*covered, *ranges])
            self._placed = sorted(found, key=lambda piece: piece.gpa)
        return self._placed

    def stored(self) -> list[Range]:
        """Return the ranges of guest memory that are stored."""
        return merged((piece.gpa, piece.gpa + piece.length) for piece in self.placed())

    def check_within(self, ranges: Iterable[Range]) -> None:
        """Check that all memory of the chain is within the machine's ``ranges``.

        Raises: Damaged.
        """
        machine = merged(ranges)
        for file in self.chain():
            for low, high in without(((e.gpa, e.end) for e in file.extents), machine):
                raise Damaged(
                    f"{file.path}: memory at guest addresses {low:#x} to {high:#x}, "
                    "outside the machine's memory"
                )

    # Reading, with checks

    def read(self, gpa: int, length: int) -> bytes:
        """Read guest memory; memory that is not stored is zero.

        Raises: Damaged.
        """
        data = bytearray(length)
        placed = self.placed()
        at = max(bisect_right(placed, gpa, key=lambda piece: piece.gpa) - 1, 0)
        for piece in placed[at:]:
            if piece.gpa >= gpa + length:
                break
            low, high = max(piece.gpa, gpa), min(piece.gpa + piece.length, gpa + length)
            if low < high:
                start = piece.offset + low - piece.gpa
                data[low - gpa : high - gpa] = piece.file._read(start, high - low)
        return bytes(data)

    def view(self, gpa: int, length: int) -> memoryview:
        """Read guest memory as a memoryview."""
        return memoryview(self.read(gpa, length))

    def _read(self, offset: int, length: int) -> bytes:
        """Read bytes of the memory section from checked blocks."""
        found = bytearray()
        while len(found) < length:
            at = offset + len(found)
            number = at // BLOCK - self.header.memory.offset // BLOCK
            start, end = self.blocks[number]
            block = self._recent_block(number)
            found += block[at - start : min(end - start, at - start + length - len(found))]
        return bytes(found)

    def read_block(self, number: int) -> bytes:
        """Read and check a block.

        Raises: Damaged.
        """
        start, end = self.blocks[number]
        with path_in_errors(self.path):
            data = format.read_exactly(self.fd, start, end - start)
            self.check_block(number, data)
        return data

    def check_block(self, number: int, data: bytes | memoryview) -> None:
        """Check a block's data against its SHA-256.

        Raises: Damaged.
        """
        if hashlib.sha256(data).digest() != self.hashes[number]:
            start, end = self.blocks[number]
            raise Damaged(
                f"its memory is damaged between bytes {start:#x} and {end:#x}: the SHA-256 differs",
                hint=DAMAGE_HINT,
            )

    def verify(self, stop: Callable[[], bool] = lambda: False, workers: int = 1) -> bool:
        """Check all memory of the chain; return False if ``stop`` ended the check.

        Raises: Damaged.
        """

        def check(job: tuple[SnapshotFile, int]) -> bool:
            if stop():
                return False
            file, number = job
            file.read_block(number)
            return True

        jobs = [(file, number) for file in self.chain() for number in range(len(file.blocks))]
        return all(map(check, jobs) if workers == 1 else in_threads(check, jobs, workers))


class ForeignParent(UsageError):
    """A refusal to open a parent of a stranger's snapshot; ``file`` is that snapshot, closed."""

    def __init__(self, file: SnapshotFile, parent: Path) -> None:
        self.file = file
        self.parent = parent
        super().__init__(
            f"{file.path}: you did not save it here, and its parent is elsewhere: {parent}",
            hint="use `trust` if the file may be read, or put it beside the snapshot",
        )


def beside(path: Path, snapshot: Path) -> bool:
    """Return whether a file lies in a snapshot's directory; hidden files do not count.

    In a home directory, those are the files with the user's settings.
    """
    real, place = (Path(os.path.realpath(one)) for one in (path, snapshot))
    return real.parent == place.parent and not real.name.startswith(".")


@contextlib.contextmanager
def path_in_errors(path: Path) -> Iterator[None]:
    """Add a file's path to the errors of the block."""
    try:
        yield
    except UsageError as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def in_threads(work: Callable[[J], R], jobs: Iterable[J], workers: int = WORKERS) -> list[R]:
    """Do jobs in parallel; the first error ends them."""
    with ThreadPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
        try:
            return list(pool.map(work, jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
