from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.errors import UsageError
from pyvmm.layout import MIB
from pyvmm.memory.map import MemoryMap, PluggableMemory
from pyvmm.memory.ram import GuestMemory

BASE = 0x1_0000_0000
BLOCK = 2 * MIB
BLOCKS = 8

RAM = 0x8000_0000


@pytest.fixture
def pluggable() -> Iterator[PluggableMemory]:
    with PluggableMemory(BASE, BLOCKS * BLOCK, BLOCK) as memory:
        yield memory


@pytest.fixture
def ram() -> Iterator[GuestMemory]:
    with GuestMemory(RAM, 4 * MIB) as memory:
        yield memory


def test_memory_is_inaccessible_before_it_is_plugged(pluggable: PluggableMemory) -> None:
    assert pluggable.plugged_size == 0
    assert not pluggable.contains(BASE, 1)
    assert list(pluggable.runs()) == []


@pytest.mark.parametrize(
    ("gpa", "length", "there"),
    [
        (BASE + 2 * BLOCK, 1, True),
        (BASE + 2 * BLOCK, 3 * BLOCK, True),
        (BASE + 5 * BLOCK - 1, 1, True),
        (BASE + 5 * BLOCK - 1, 2, False),
        (BASE + 2 * BLOCK - 1, 2, False),
        (BASE + BLOCK, 2 * BLOCK, False),
        (BASE + 2 * BLOCK, -1, False),
        (BASE + BLOCKS * BLOCK, 1, False),
        (BASE - 1, 2 * BLOCK, False),
        (BASE + 2 * BLOCK, 1 << 64, False),
    ],
)
def test_only_plugged_blocks_are_accessible(
    pluggable: PluggableMemory, gpa: int, length: int, there: bool
) -> None:
    pluggable.set_plugged(2, 3, True)

    assert pluggable.contains(gpa, length) is there
    for access in (pluggable.view, pluggable.discard):
        if there:
            access(gpa, length)
        else:
            with pytest.raises(GuestMemory.OutOfRange):
                access(gpa, length)


def test_unplugged_block_loses_its_content(pluggable: PluggableMemory) -> None:
    pluggable.set_plugged(0, 2, True)
    with pluggable.view(BASE + BLOCK, 4) as view:
        view[:] = b"gone"
    with pluggable.view(BASE, 4) as view:
        view[:] = b"here"

    pluggable.set_plugged(1, 1, False)
    pluggable.set_plugged(1, 1, True)

    assert bytes(pluggable.view(BASE + BLOCK, 4)) == bytes(4)
    assert bytes(pluggable.view(BASE, 4)) == b"here"


def test_runs_cover_the_plugged_blocks(pluggable: PluggableMemory) -> None:
    for first, count in ((0, 1), (3, 2), (7, 1)):
        pluggable.set_plugged(first, count, True)

    assert list(pluggable.runs()) == [(0, 1), (3, 2), (7, 1)]
    assert pluggable.plugged_size == 4 * BLOCK
    assert pluggable.plugged_among(2, 3) == 2
    assert pluggable.plugged_among(7, 1) == 1
    assert pluggable.plugged_among(6, 1) == 0


@pytest.mark.parametrize(
    ("base", "size", "block"),
    [(BASE + 4096, BLOCK, BLOCK), (BASE, BLOCK + 4096, BLOCK), (BASE, 3 * MIB, 3 * MIB)],
)
def test_sizes_of_no_whole_blocks_are_refused(base: int, size: int, block: int) -> None:
    with pytest.raises(UsageError, match="not whole blocks"):
        PluggableMemory(base, size, block)


def test_map_finds_each_range_in_its_piece(ram: GuestMemory, pluggable: PluggableMemory) -> None:
    memory = MemoryMap(ram)
    memory.add(pluggable)
    pluggable.set_plugged(1, 1, True)

    with memory.view(BASE + BLOCK, 2) as view:
        view[:] = b"hi"
    with memory.view(RAM, 2) as view:
        view[:] = b"lo"

    assert bytes(pluggable.view(BASE + BLOCK, 2)) == b"hi"
    assert ram.read(RAM, 2) == b"lo"
    memory.discard(BASE + BLOCK, 4096)
    assert bytes(pluggable.view(BASE + BLOCK, 2)) == bytes(2)
    assert ram.read(RAM, 2) == b"lo"


@pytest.mark.parametrize("gpa", [0, RAM + 4 * MIB - 1, RAM + 4 * MIB, BASE, BASE + BLOCK - 1])
def test_map_refuses_a_range_outside_the_pieces(
    ram: GuestMemory, pluggable: PluggableMemory, gpa: int
) -> None:
    memory = MemoryMap(ram, pluggable)
    pluggable.set_plugged(1, 1, True)

    assert not memory.contains(gpa, 2)
    with pytest.raises(GuestMemory.OutOfRange):
        memory.view(gpa, 2)
