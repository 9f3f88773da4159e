"""Snapshot files: memory and state are restored as they were written, eagerly and lazily."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.errors import UsageError
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.restorememory import fill, map_into
from pyvmm.snapshot.writer import MemoryToSave, write_snapshot
from tests.snapshot.files import (
    BASE,
    DOCUMENT,
    FILLERS,
    SIZE,
    noise,
    restored,
    save,
    write_scene,
)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(BASE, SIZE) as memory:
        yield memory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.snap"


@pytest.mark.parametrize("how", FILLERS)
def test_restore_returns_the_memory_that_was_saved(
    memory: GuestMemory, path: Path, how: str
) -> None:
    write_scene(memory)

    save(path, memory)

    assert restored(path, how) == memory.read(BASE, SIZE)


def test_file_returns_the_state_that_was_written(memory: GuestMemory, path: Path) -> None:
    identity = save(path, memory)

    with SnapshotFile.open(path) as snapshot:
        assert snapshot.document == DOCUMENT
        assert snapshot.identity == identity
        assert snapshot.verify()


def test_file_does_not_store_zero_pages(memory: GuestMemory, path: Path) -> None:
    write_scene(memory)
    memory.write(BASE + 3 * BLOCK, bytes(BLOCK // 2))  # touched but zero

    save(path, memory)

    with SnapshotFile.open(path) as snapshot:
        assert snapshot.stored() == [
            (BASE + 3 * PAGE, BASE + 4 * PAGE),
            (BASE + BLOCK - 2 * PAGE, BASE + 2 * BLOCK + 3 * PAGE),
            (BASE + SIZE - PAGE, BASE + SIZE),
        ]
    assert path.stat().st_blocks * 512 < BLOCK + 16 * PAGE + 64 * PAGE


def test_whole_blocks_are_aligned_in_the_file_as_in_the_guest(
    memory: GuestMemory, path: Path
) -> None:
    write_scene(memory)

    save(path, memory)

    with SnapshotFile.open(path) as snapshot:
        aligned = [e for e in snapshot.extents if e.length >= BLOCK]
        assert [(e.gpa % BLOCK, e.offset % BLOCK) for e in aligned] == [(0, 0)]


def test_first_line_hash_covers_the_whole_file(memory: GuestMemory, path: Path) -> None:
    write_scene(memory)
    save(path, memory)
    data = path.read_bytes()
    line, _, rest = data[:PAGE].partition(b"\n")
    header = json.loads(rest)

    assert line.split()[3].decode() == hashlib.sha256(rest).hexdigest()
    for part in ("state", "index"):
        at, length = header[part]["offset"], header[part]["length"]
        assert header[part]["sha256"] == hashlib.sha256(data[at : at + length]).hexdigest()
    index = data[header["index"]["offset"] : header["memory"]["offset"]]
    at = 24 * header["index"]["extents"]
    for start in range(header["memory"]["offset"] // BLOCK * BLOCK, len(data), BLOCK):
        block = data[max(start, header["memory"]["offset"]) : start + BLOCK]
        assert index[at : at + 32] == hashlib.sha256(block).digest()
        at += 32
    assert not index[at:].strip(b"\0")


def test_state_is_readable_with_dd_and_json(memory: GuestMemory, path: Path) -> None:
    save(path, memory)
    page = path.read_bytes()[:PAGE]
    state = json.loads(page.split(b"\n", 1)[1])["state"]

    dd = ["dd", f"if={path}", "bs=4096", "skip=1", f"count={state['length'] // 4096}"]
    text = subprocess.run(dd, capture_output=True, check=True).stdout

    assert json.loads(text) == DOCUMENT


def test_only_the_user_may_read_the_file(memory: GuestMemory, path: Path) -> None:
    save(path, memory)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_file_stores_two_memories(memory: GuestMemory, path: Path) -> None:
    with GuestMemory(BASE + SIZE, BLOCK) as beside, GuestMemory(BASE + SIZE, BLOCK) as other:
        memory.write(BASE + SIZE - PAGE, noise(PAGE))
        beside.write(BASE + SIZE, noise(PAGE))
        write_snapshot(path, DOCUMENT, [MemoryToSave(memory), MemoryToSave(beside)])
        with SnapshotFile.open(path) as snapshot, GuestMemory(BASE, SIZE) as back:
            fill(snapshot, [back, other])

            assert back.read(BASE, SIZE) == memory.read(BASE, SIZE)
        assert other.read(BASE + SIZE, BLOCK) == beside.read(BASE + SIZE, BLOCK)


@pytest.mark.parametrize("how", FILLERS)
def test_restore_refuses_memory_outside_the_machine(
    memory: GuestMemory, path: Path, how: str
) -> None:
    write_scene(memory)
    save(path, memory)

    with (
        SnapshotFile.open(path) as snapshot,
        GuestMemory(BASE, SIZE - BLOCK) as short,
        pytest.raises(UsageError, match=r"0x807ff000 to 0x80800000, outside the machine"),
    ):
        FILLERS[how](snapshot, [short])


def test_write_to_lazy_memory_does_not_change_the_file(memory: GuestMemory, path: Path) -> None:
    write_scene(memory)
    save(path, memory)
    before = path.read_bytes()

    with SnapshotFile.open(path) as snapshot, GuestMemory(BASE, SIZE) as back:
        map_into(snapshot, [back])
        back.write(BASE + 3 * PAGE, b"changed")

        assert back.read(BASE + 3 * PAGE, 7) == b"changed"
    assert path.read_bytes() == before


@pytest.mark.parametrize("give_back", [GuestMemory.zero, GuestMemory.discard])
def test_lazy_memory_is_zero_after_it_was_given_back(
    memory: GuestMemory, path: Path, give_back: object
) -> None:
    write_scene(memory)
    save(path, memory)
    assert callable(give_back)

    with SnapshotFile.open(path) as snapshot, GuestMemory(BASE, SIZE) as back:
        map_into(snapshot, [back])
        give_back(back, BASE + BLOCK, 4 * PAGE)

        assert back.read(BASE + BLOCK, 4 * PAGE) == bytes(4 * PAGE)
        assert back.read(BASE + BLOCK + 4 * PAGE, 9) == memory.read(BASE + BLOCK + 4 * PAGE, 9)


def test_save_includes_untouched_lazy_memory(memory: GuestMemory, path: Path) -> None:
    write_scene(memory)
    save(path, memory)
    again = path.with_name("again.snap")

    with SnapshotFile.open(path) as snapshot, GuestMemory(BASE, SIZE) as back:
        map_into(snapshot, [back])
        save(again, back)

    assert again.read_bytes() == path.read_bytes()


def test_restore_maps_aligned_pieces_on_a_host_with_larger_pages(
    memory: GuestMemory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(memory)
    save(path, memory)
    mapped: list[int] = []

    def note(self: GuestMemory, gpa: int, length: int, fd: int, offset: int) -> None:
        mapped.append(length)
        self.load(gpa, length, fd, offset)

    with SnapshotFile.open(path) as snapshot, GuestMemory(BASE, SIZE) as back:
        monkeypatch.setattr(GuestMemory, "map_file", note)
        monkeypatch.setattr(mmap, "PAGESIZE", 65536)
        map_into(snapshot, [back])
        monkeypatch.undo()

        assert mapped == [BLOCK]
        assert back.read(BASE, SIZE) == memory.read(BASE, SIZE)


def test_restore_reads_small_pieces_and_maps_large_ones_if_there_are_many(
    memory: GuestMemory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in range(0, 64, 2):
        memory.write(BASE + page * PAGE, noise(PAGE))
    memory.write(BASE + BLOCK, noise(BLOCK))
    save(path, memory)
    mapped: list[int] = []
    real = GuestMemory.map_file

    def note(self: GuestMemory, gpa: int, length: int, fd: int, offset: int) -> None:
        mapped.append(length)
        real(self, gpa, length, fd, offset)

    monkeypatch.setattr(GuestMemory, "map_file", note)
    monkeypatch.setattr("pyvmm.snapshot.restorememory.MOST_MAPPED", 8)

    assert restored(path, "lazy") == memory.read(BASE, SIZE)
    assert mapped == [BLOCK]


@pytest.mark.parametrize("gpa", [BASE, BASE + BLOCK - 3, BASE + SIZE - 8])
def test_read_returns_any_range_of_bytes(memory: GuestMemory, path: Path, gpa: int) -> None:
    write_scene(memory)
    save(path, memory)

    with SnapshotFile.open(path) as snapshot:
        assert snapshot.read(gpa, 8) == memory.read(gpa, 8)
        assert snapshot.read(BASE, SIZE) == memory.read(BASE, SIZE)


def test_file_of_empty_memory_has_no_extents(memory: GuestMemory, path: Path) -> None:
    save(path, memory)

    assert path.stat().st_size == 2 * PAGE
    assert restored(path) == bytes(SIZE)


def test_save_without_pagemap_writes_the_same_file(
    memory: GuestMemory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(memory)
    save(path, memory)
    other = path.with_name("other.snap")

    monkeypatch.setattr("pyvmm.snapshot.pages.PAGEMAP", Path(os.devnull) / "none")
    save(other, memory)

    assert other.read_bytes() == path.read_bytes()
