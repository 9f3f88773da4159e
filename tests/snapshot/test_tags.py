"""Memory tags in a snapshot: their packing, their areas, and a guest that checks them."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from pyvmm.commands.snapshot.diff import document, lines
from pyvmm.errors import UsageError
from pyvmm.layout import RAM_BASE
from pyvmm.machine.plan import Feature
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot import tags
from pyvmm.snapshot.compare import Detail, TagChange, compare
from pyvmm.snapshot.format import PAGE
from pyvmm.snapshot.pages import by_content
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.snapshot import Snapshot
from pyvmm.snapshot.state import TAGS_BASE, Area, State
from pyvmm.snapshot.transfer import export, flatten, unpack
from pyvmm.snapshot.writer import MemoryToSave, write_snapshot
from tests.snapshot import sample

MTE = frozenset({Feature.MTE})


def test_pack_and_unpack_are_inverse() -> None:
    random.seed(7)
    given = bytearray(random.choices(range(16), k=4096))

    packed = tags.pack(given)

    assert len(packed) == 2048
    assert packed[0] == given[0] | given[1] << 4
    assert tags.unpack(packed) == given


def with_tags(*areas: Area, features: frozenset[Feature] = MTE) -> State:
    """Return a state with those areas of tags."""
    found = sample.state()
    return found.replace(features=found.features | features, memory=(*found.memory, *areas))


def right() -> Area:
    """Return the area of the tags of the sample's RAM."""
    (ram,) = (area for area in sample.state().memory if area.name == "ram")
    return Area(name="ram-tags", base=TAGS_BASE + ram.base // 32, size=ram.size // 32)


def test_state_of_a_guest_with_tags_has_their_area() -> None:
    state = with_tags(right(), sample.GENERATION_ID)  # which has no tags

    assert State.of(state.document(), "x").memory == state.memory


@pytest.mark.parametrize(
    "state",
    [
        with_tags(),
        with_tags(right(), features=frozenset()),
        with_tags(right().replace(base=right().base + 4096)),
        with_tags(right().replace(size=4096)),
        with_tags(right().replace(name="rom-tags")),
    ],
    ids=["none", "no MTE", "elsewhere", "too small", "of other memory"],
)
def test_state_with_other_areas_of_tags_is_damaged(state: State) -> None:
    with pytest.raises(UsageError, match="areas of memory tags differ"):
        State.of(state.document(), "x")


TAGS_OF_RAM = TAGS_BASE + RAM_BASE // 32


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path]:
    """Return a snapshot with tags, and its child with other tags of two pages of RAM.

    In the child the first two granules of RAM have the tags 2 and 0 in place of 1 and 1, and all
    of the page 100 has the tag 3 in place of 0.
    """
    parent, child = tmp_path / "parent", tmp_path / "child"
    state = with_tags(right())
    with GuestMemory(TAGS_OF_RAM, right().size) as memory:
        memory.write(TAGS_OF_RAM, b"\x11")
        write_snapshot(parent, state.document(), [MemoryToSave(memory)])
        memory.write(TAGS_OF_RAM, b"\x02")
        memory.write(TAGS_OF_RAM + 100 * PAGE // 32, b"\x33" * (PAGE // 32))
        with SnapshotFile.open(parent) as file:
            parts = [MemoryToSave(memory, list(by_content(memory, file)))]
            write_snapshot(child, state.document(), parts, parent=file)
    return parent, child


def test_compare_reports_other_tags_by_the_granules_of_guest_memory(
    chain: tuple[Path, Path],
) -> None:
    with Snapshot(chain[0]) as left, Snapshot(chain[1]) as other:
        found = compare(left, other)

    page = RAM_BASE + 100 * PAGE
    assert found.memory == ()
    assert found.tags == (
        TagChange(RAM_BASE, RAM_BASE + PAGE, 2,
                  (Detail(f"{RAM_BASE:#x}", "1", "2"), Detail(f"{RAM_BASE + 16:#x}", "1", "0"))),
        TagChange(page, page + PAGE, 256,
                  tuple(Detail(f"{page + 16 * n:#x}", "0", "3") for n in range(4))),
    )  # fmt: skip
    assert found.differ
    text = list(lines(*chain, found))
    assert "memory tags: 258 granules in 2 ranges of pages" in text
    assert f"  {RAM_BASE:#x}-{RAM_BASE + PAGE:#x}  2 granules: " in "\n".join(text)
    assert text[-1].endswith(", ...")
    first, _ = document(*chain, found, True)["tags"]
    assert first["first"][0] == {"address": f"{RAM_BASE:#x}", "a": "1", "b": "2"}


def test_compare_finds_no_difference_in_equal_tags(chain: tuple[Path, Path]) -> None:
    with Snapshot(chain[1]) as left, Snapshot(chain[1]) as other:
        assert not compare(left, other).found


def test_child_stores_the_tags_that_changed_alone(chain: tuple[Path, Path]) -> None:
    with SnapshotFile.open(chain[1]) as child:
        assert sum(piece.length for piece in child.placed() if piece.file is child) == 2 * PAGE


def test_flatten_and_export_keep_the_tags_of_a_chain(
    chain: tuple[Path, Path], tmp_path: Path
) -> None:
    with SnapshotFile.open(chain[1]) as child:
        want = child.read(TAGS_OF_RAM, right().size)
        flatten(child, tmp_path / "flat")
        packed = b"".join(export(child, tmp_path, 1))
    unpack(io.BytesIO(packed), "packed", tmp_path / "unpacked")

    for name in ("flat", "unpacked"):
        with SnapshotFile.open(tmp_path / name) as file:
            assert file.parent is None
            assert file.read(TAGS_OF_RAM, right().size) == want
    assert want.startswith(b"\x02")
