"""Ranges of pages, and detection of pages that are not zero."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range, merged, whole, without
from pyvmm.snapshot import pages
from pyvmm.snapshot.format import BLOCK, PAGE

BASE = 0x8000_0000

ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair))),
    max_size=8,
)


def points(of: list[Range]) -> set[int]:
    return {point for low, high in of for point in range(low, high)}


@given(ranges)
def test_merged_ranges_cover_the_same_addresses_in_order(some: list[Range]) -> None:
    found = merged(some)

    assert points(found) == points(some)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


@given(ranges, ranges)
def test_without_removes_the_addresses_of_the_holes(some: list[Range], holes: list[Range]) -> None:
    left = without(merged(some), merged(holes))

    assert points(left) == points(some) - points(holes)
    assert all(low < high for low, high in left)


def test_merged_ranges_within_a_gap_are_one() -> None:
    assert merged([(0, 2), (3, 4), (6, 7)], 1) == [(0, 4), (6, 7)]


def test_whole_extends_ranges_to_whole_pages() -> None:
    assert whole([(PAGE + 1, PAGE + 2), (2 * PAGE, 2 * PAGE + 1)], PAGE) == [(PAGE, 3 * PAGE)]


def test_save_does_not_read_untouched_memory() -> None:
    with GuestMemory(BASE, 64 * BLOCK) as memory:
        memory.write(BASE + 5 * BLOCK + 7, b"x")

        touched = pages.touched(memory)

        assert points([(low // BLOCK, -(-high // BLOCK)) for low, high in touched]) == {
            (BASE + 5 * BLOCK) // BLOCK
        }


def test_page_is_used_if_only_its_last_byte_is_set() -> None:
    with GuestMemory(BASE, BLOCK) as memory:
        memory.write(BASE + 4 * PAGE - 1, b"x")
        memory.write(BASE + 9 * PAGE, b"x")

        assert pages.used(memory, [(BASE, BASE + BLOCK)]) == [
            (BASE + 3 * PAGE, BASE + 4 * PAGE),
            (BASE + 9 * PAGE, BASE + 10 * PAGE),
        ]


def test_differing_marks_pages_that_differ() -> None:
    one, other = bytearray(4 * PAGE), bytearray(4 * PAGE)
    other[2 * PAGE + 5] = 1

    assert pages.differing(memoryview(one), memoryview(other)) == b"\0\0\1\0"
