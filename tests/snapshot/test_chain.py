"""Incremental snapshots: chains of files, complete and broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.errors import UsageError
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import SnapshotFile
from tests.snapshot.files import BASE, FILLERS, SIZE, noise, restored, save, write_scene

DIRTY = [(BASE, BASE + PAGE), (BASE + BLOCK, BASE + BLOCK + 4 * PAGE)]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(BASE, SIZE) as memory:
        write_scene(memory)
        yield memory


def change(memory: GuestMemory) -> None:
    """Write the pages in DIRTY: two with data, three with zeros."""
    memory.write(BASE, noise(PAGE, 7))
    memory.write(BASE + BLOCK, noise(PAGE, 8) + bytes(3 * PAGE))


@pytest.fixture
def child(tmp_path: Path, memory: GuestMemory) -> Path:
    """Write a snapshot with a parent, of the current ``memory``."""
    save(tmp_path / "parent.snap", memory)
    change(memory)
    with SnapshotFile.open(tmp_path / "parent.snap") as parent:
        save(tmp_path / "child.snap", memory, DIRTY, parent)
    return tmp_path / "child.snap"


@pytest.mark.parametrize("how", FILLERS)
def test_chain_restores_the_memory_of_parent_and_child(
    child: Path, memory: GuestMemory, how: str
) -> None:
    assert restored(child, how) == memory.read(BASE, SIZE)


def test_chain_of_three_restores_the_newest_memory(child: Path, memory: GuestMemory) -> None:
    memory.write(BASE + BLOCK + PAGE, noise(PAGE, 9))
    grandchild = child.with_name("grandchild.snap")
    with SnapshotFile.open(child) as parent:
        save(grandchild, memory, [(BASE + BLOCK + PAGE, BASE + BLOCK + 2 * PAGE)], parent)

    with SnapshotFile.open(grandchild) as snapshot:
        assert [file.path.name for file in snapshot.chain()] == [
            "parent.snap", "child.snap", "grandchild.snap",
        ]  # fmt: skip
        assert snapshot.read(BASE, SIZE) == memory.read(BASE, SIZE)
    assert restored(grandchild, "lazy") == memory.read(BASE, SIZE)


def test_child_stores_only_dirty_pages(child: Path) -> None:
    assert child.stat().st_size == 5 * PAGE  # header, state, index, two pages


def test_child_marks_a_page_that_became_zero(child: Path) -> None:
    with SnapshotFile.open(child) as snapshot:
        assert snapshot.read(BASE + BLOCK + PAGE, 3 * PAGE) == bytes(3 * PAGE)
        assert (BASE + BLOCK + PAGE, BASE + BLOCK + 4 * PAGE) in [
            (extent.gpa, extent.end) for extent in snapshot.extents if not extent.offset
        ]


def test_chain_restores_after_all_files_were_moved(
    child: Path, memory: GuestMemory, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("parent.snap", "child.snap"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)

    assert restored(tmp_path / "elsewhere/child.snap") == memory.read(BASE, SIZE)


def test_child_finds_its_parent_when_opened_by_a_link(
    tmp_path: Path, child: Path, memory: GuestMemory
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/child.snap").symlink_to(child)

    assert restored(tmp_path / "links/child.snap") == memory.read(BASE, SIZE)


def test_open_reports_a_missing_parent(child: Path) -> None:
    child.with_name("parent.snap").unlink()

    with pytest.raises(UsageError, match=r"child\.snap: its parent: .*parent\.snap: cannot be"):
        SnapshotFile.open(child)


def test_open_reports_a_changed_parent(child: Path, memory: GuestMemory) -> None:
    save(child.with_name("parent.snap"), memory)

    with pytest.raises(UsageError, match=r"its parent .*parent\.snap has changed: it is snapshot"):
        SnapshotFile.open(child)


@pytest.mark.parametrize("name", ["parent.snap", "child.snap", "link.snap"])
def test_save_refuses_to_replace_its_own_parent(
    child: Path, memory: GuestMemory, name: str
) -> None:
    child.with_name("link.snap").symlink_to(child)

    with (
        SnapshotFile.open(child) as parent,
        pytest.raises(UsageError, match="cannot replace its own parent"),
    ):
        save(child.with_name(name), memory, DIRTY, parent)

    assert restored(child) == memory.read(BASE, SIZE)


def test_restore_reports_damaged_memory_of_the_parent(child: Path) -> None:
    parent = child.with_name("parent.snap")
    data = bytearray(parent.read_bytes())
    data[-1] ^= 1
    parent.write_bytes(data)

    with (
        SnapshotFile.open(child) as snapshot,
        pytest.raises(UsageError, match=r"parent\.snap: its memory is damaged"),
    ):
        snapshot.verify()
    with pytest.raises(UsageError, match=r"parent\.snap: its memory is damaged"):
        restored(child)
