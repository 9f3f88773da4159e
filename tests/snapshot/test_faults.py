"""Interrupted saves and damaged files: a snapshot is complete, or reported as damaged."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.errors import HostError, UsageError
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.format import PAGE
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.writer import MemoryToSave, write_snapshot
from tests.snapshot import saver
from tests.snapshot.files import BASE, SIZE, noise, restored, save, write_scene

KILLS = 100
FLIPS = 1000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(BASE, SIZE) as memory:
        yield memory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.snap"


def debris(path: Path) -> list[Path]:
    return [found for found in path.parent.iterdir() if found != path]


def seed_of_whole(path: Path) -> int:
    """Return the seed of the save that wrote the whole file."""
    with SnapshotFile.open(path) as snapshot:
        assert snapshot.verify()
        seed = int(snapshot.document["seed"])
        assert snapshot.read(BASE, saver.LENGTH) == noise(saver.LENGTH, seed)
    return seed


def is_refused(path: Path) -> bool:
    """Return whether a temporary file is refused; a complete one is a valid snapshot."""
    try:
        snapshot = SnapshotFile.open(path)
    except UsageError:
        return True
    with snapshot:
        assert snapshot.verify()
    return False


def test_killed_save_leaves_the_old_file_or_a_complete_one(path: Path, memory: GuestMemory) -> None:
    memory.write(BASE, noise(saver.LENGTH, 0))
    began = time.perf_counter()
    write_snapshot(path, {"seed": 0}, [MemoryToSave(memory)])
    took, dice, seeds = time.perf_counter() - began, random.Random(5), set()
    broken = left_most = 0
    with subprocess.Popen(
        [sys.executable, "-m", "tests.snapshot.saver", str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as forker:  # fmt: skip
        assert forker.stdin and forker.stdout
        for _ in range(KILLS):
            forker.stdin.write("\n")
            child = int(forker.stdout.readline())
            time.sleep(dice.uniform(0, 2 * took))
            os.kill(child, signal.SIGKILL)
            assert forker.stdout.readline() == "dead\n"

            seeds.add(seed_of_whole(path))
            left_most = max(left_most, len(debris(path)))
            for found in debris(path):
                broken += is_refused(found)
        forker.stdin.close()
    assert saver.SEED in seeds
    assert broken
    assert left_most == 1  # each save removes what the one before left
    write_snapshot(path, {"seed": 0}, [MemoryToSave(memory)])
    assert not debris(path)


def test_save_to_a_full_disk_fails_and_leaves_the_old_file(path: Path, memory: GuestMemory) -> None:
    save(path, memory)
    before = path.read_bytes()
    write_scene(memory)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(HostError, match=r"guest\.snap: cannot be written: File too large"):
            save(path, memory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert path.read_bytes() == before
    assert not debris(path)


def test_save_fails_if_any_write_fails(
    path: Path, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any write can fail on a full disk: memory, index, first page, fsync."""
    save(path, memory)
    before = path.read_bytes()
    write_scene(memory)
    real, left = os.pwrite, 0

    def fails(fd: int, data: memoryview, offset: int) -> int:
        nonlocal left
        if not left:
            raise OSError(28, "No space left on device")
        left -= 1
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fails)
    for writes in range(4):
        left = writes
        with pytest.raises(HostError, match="No space left on device"):
            save(path, memory)

        assert path.read_bytes() == before
        assert not debris(path)


def test_open_or_verify_detects_any_changed_byte(path: Path, memory: GuestMemory) -> None:
    """A third of the changes are before memory."""
    write_scene(memory)
    save(path, memory)
    data, dice = bytearray(path.read_bytes()), random.Random(7)
    with SnapshotFile.open(path) as snapshot:
        start = snapshot.header.memory.offset
    places = [dice.randrange(start) for _ in range(FLIPS // 3)]
    places += [dice.randrange(len(data)) for _ in range(FLIPS - len(places))]
    missed = []
    with path.open("r+b", buffering=0) as file:
        for place in places:
            os.pwrite(file.fileno(), bytes([data[place] ^ 1 << dice.randrange(8)]), place)
            try:
                with SnapshotFile.open(path) as snapshot:
                    assert place >= start, "state and index are checked at once"
                    number = next(n for n, (_, end) in enumerate(snapshot.blocks) if place < end)
                    snapshot.read_block(number)
                missed.append(place)
            except UsageError:
                pass
            os.pwrite(file.fileno(), data[place : place + 1], place)
    assert not missed


@pytest.mark.parametrize("check", [SnapshotFile.verify, None])
def test_restore_detects_changed_memory(
    path: Path, memory: GuestMemory, check: Callable[[SnapshotFile], bool] | None
) -> None:
    write_scene(memory)
    save(path, memory)
    data = bytearray(path.read_bytes())
    data[-PAGE] ^= 0x80
    path.write_bytes(data)

    with pytest.raises(UsageError, match=r"guest\.snap: its memory is damaged between bytes 0x"):
        if check:
            with SnapshotFile.open(path) as snapshot:
                check(snapshot)
        else:
            restored(path)


def test_restore_detects_a_change_between_small_and_large_pieces(
    path: Path, memory: GuestMemory
) -> None:
    write_scene(memory)
    save(path, memory)
    with SnapshotFile.open(path) as snapshot:
        small = max(e.offset + e.length for e in snapshot.extents if e.length < 1 << 20)
        assert small < max(extent.offset for extent in snapshot.extents)
    with path.open("r+b") as file:
        file.seek(small)
        file.write(b"!")

    with pytest.raises(UsageError, match="its memory is damaged"):
        restored(path)


def test_open_refuses_a_truncated_file(path: Path, memory: GuestMemory) -> None:
    write_scene(memory)
    save(path, memory)
    data, dice = path.read_bytes(), random.Random(9)
    lengths = [0, 1, 31, PAGE - 1, PAGE, 2 * PAGE, len(data) - PAGE, len(data) - 1]

    for length in [*lengths, *(dice.randrange(len(data)) for _ in range(50))]:
        os.truncate(path, length)
        with pytest.raises(UsageError, match=r"guest\.snap: .*(short|empty|instead of)"):
            SnapshotFile.open(path)
        path.write_bytes(data)


def test_open_refuses_a_file_with_data_at_its_end(path: Path, memory: GuestMemory) -> None:
    save(path, memory)
    with path.open("ab") as file:
        file.write(bytes(PAGE))

    with pytest.raises(UsageError, match=rf"has {path.stat().st_size} bytes instead of"):
        SnapshotFile.open(path)


@pytest.mark.parametrize("how", ["eager", "lazy"])
def test_eight_threads_restore_one_file_at_once(path: Path, memory: GuestMemory, how: str) -> None:
    write_scene(memory)
    save(path, memory)
    same: list[bool] = []
    expected = memory.read(BASE, SIZE)
    threads = [
        threading.Thread(target=lambda: same.append(restored(path, how) == expected))
        for _ in range(8)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert same == [True] * 8


def test_two_saves_to_one_name_leave_one_complete_file(path: Path) -> None:
    def save_often(seed: int) -> None:
        with GuestMemory(BASE, SIZE) as memory:
            memory.write(BASE, noise(saver.LENGTH, seed))
            for _ in range(8):
                write_snapshot(path, {"seed": seed}, [MemoryToSave(memory)])

    threads = [threading.Thread(target=save_often, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert seed_of_whole(path) in (1, 2)

    assert seed_of_whole(path) in (1, 2)
    assert not debris(path)


def test_save_does_not_remove_the_file_of_another_running_save(
    path: Path, memory: GuestMemory
) -> None:
    write_scene(memory)
    seen: list[list[Path]] = []

    class Slow:
        """Memory whose save runs during another save to the same name."""

        def view(self, gpa: int, length: int) -> memoryview:
            if not seen:
                seen.append([])
                write_snapshot(path, {"seed": 2}, [MemoryToSave(memory)])
                seen[0] = debris(path)
            return memory.view(gpa, length)

    write_snapshot(path, {"seed": 1}, [MemoryToSave(Slow(), [(BASE, BASE + SIZE)])])

    assert len(seen[0]) == 1  # the slow one's, still there
    with SnapshotFile.open(path) as snapshot:
        assert snapshot.document == {"seed": 1}  # the last to end


@pytest.mark.parametrize("what", ["directory", "pipe", "missing/guest.snap"])
def test_save_reports_a_path_that_cannot_be_written(
    tmp_path: Path, memory: GuestMemory, what: str
) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(UsageError, match="cannot be written: "):
        save(tmp_path / what, memory)
    with pytest.raises(UsageError, match=f"{what}: "):
        SnapshotFile.open(tmp_path / what)
