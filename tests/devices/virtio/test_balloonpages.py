"""The pages in a balloon, and their discards, against a model."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pyvmm.devices.virtio import balloonpages
from pyvmm.devices.virtio.balloonpages import AREA, AREA_PAGES, PAGE, BalloonPages
from pyvmm.devices.virtio.queue import QueueError
from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import OutOfRange

FIRST = RAM_BASE // PAGE
AREAS = 3
END = FIRST + AREAS * AREA_PAGES + 7  # the last area is partial


class Noted:
    """Memory that records the calls of its methods."""

    def __init__(self) -> None:
        self.discarded: list[tuple[int, int]] = []
        self.small: set[int] = set()  # areas without huge pages

    def contains(self, gpa: int, length: int) -> bool:
        return gpa >= FIRST * PAGE and gpa + length <= END * PAGE

    def view(self, gpa: int, length: int) -> memoryview:
        raise OutOfRange(gpa, length, "nowhere")

    def discard(self, gpa: int, length: int) -> None:
        assert self.contains(gpa, length)
        self.discarded.append((gpa // PAGE, length // PAGE))

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        assert gpa % AREA == 0
        assert length == AREA
        (self.small.remove if prefer else self.small.add)(gpa)

    def pages(self) -> list[int]:
        return [page for first, count in self.discarded for page in range(first, first + count)]


@pytest.fixture
def memory() -> Noted:
    return Noted()


def test_pages_in_any_order_are_discarded_as_runs(memory: Noted) -> None:
    pages = BalloonPages(memory, 1)

    pages.add([FIRST + 7, FIRST + 5, FIRST + 6, FIRST + AREA_PAGES - 1, FIRST + AREA_PAGES])

    assert memory.discarded == [
        (FIRST + 5, 3),
        (FIRST + AREA_PAGES - 1, 1),
        (FIRST + AREA_PAGES, 1),
    ]
    assert pages.count == 5


def test_whole_area_is_discarded_at_once(memory: Noted) -> None:
    pages = BalloonPages(memory, 1)

    pages.add(range(FIRST, FIRST + AREA_PAGES))

    assert memory.discarded == [(FIRST, AREA_PAGES)]


def test_page_already_in_the_balloon_is_not_discarded_again(memory: Noted) -> None:
    pages = BalloonPages(memory, 1)
    pages.add([FIRST])

    pages.add([FIRST, FIRST, FIRST + 1])

    assert memory.discarded == [(FIRST, 1), (FIRST + 1, 1)]
    assert pages.count == 2


def test_larger_host_page_is_discarded_when_complete(memory: Noted) -> None:
    pages = BalloonPages(memory, 4)

    pages.add([FIRST, FIRST + 1, FIRST + 3, FIRST + 4])
    assert memory.discarded == []
    pages.add([FIRST + 2])

    assert memory.discarded == [(FIRST, 4)]


def test_area_has_no_huge_pages_while_it_has_a_hole(memory: Noted) -> None:
    pages = BalloonPages(memory, 1)

    pages.add([FIRST + 3, FIRST + 4])
    assert memory.small == {RAM_BASE}
    pages.remove([FIRST + 3])
    assert memory.small == {RAM_BASE}
    pages.remove([FIRST + 4])

    assert memory.small == set()
    assert pages.count == 0


def test_number_of_areas_without_huge_pages_is_bounded(
    memory: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balloonpages, "SMALL_AREAS", 2)
    pages = BalloonPages(memory, 1)
    firsts = [FIRST + n * AREA_PAGES for n in range(AREAS)]

    pages.add(firsts)
    assert memory.small == {RAM_BASE, RAM_BASE + AREA}
    pages.remove(firsts)

    assert memory.small == set()
    assert len(memory.discarded) == AREAS


@pytest.mark.parametrize("page", [0, FIRST - 1, END, (1 << 32) - 1])
def test_page_outside_ram_is_refused(memory: Noted, page: int) -> None:
    pages = BalloonPages(memory, 1)

    with pytest.raises(QueueError, match=f"{page:#x}"):
        pages.add([page])

    assert pages.count == 0
    assert memory.discarded == []


def test_restored_pages_are_not_discarded(memory: Noted) -> None:
    before = BalloonPages(Noted(), 1)
    before.add([FIRST, FIRST + 1, FIRST + 9, FIRST + AREA_PAGES])
    pages = BalloonPages(memory, 1)

    pages.restore(before.runs())

    assert list(pages.runs()) == list(before.runs())
    assert pages.count == 4
    assert memory.discarded == []
    assert memory.small == {RAM_BASE, RAM_BASE + AREA}


@pytest.mark.parametrize("host_pages", [1, 4, 16])
@pytest.mark.parametrize("seed", range(10))
def test_any_sequence_of_changes_behaves_as_a_set(seed: int, host_pages: int) -> None:
    rng = random.Random(seed)
    memory = Noted()
    pages = BalloonPages(memory, host_pages)
    model: set[int] = set()
    for _ in range(200):
        start = rng.randrange(FIRST, END)
        some = [min(END - 1, start + rng.randrange(40)) for _ in range(rng.randrange(1, 60))]
        memory.discarded.clear()
        before = set(model)
        if rng.random() < 0.5:
            pages.add(some)
            model |= set(some)
            check_discarded(memory, before, model, host_pages)
        else:
            pages.remove(some)
            model -= set(some)
            assert memory.discarded == []
        assert pages.count == len(model)
    assert [p for first, count in pages.runs() for p in range(first, first + count)] == sorted(
        model
    )
    pages.clear()
    assert memory.small == set()
    assert pages.count == 0


def check_discarded(memory: Noted, before: set[int], after: set[int], size: int) -> Any:
    """Check that exactly the host pages now whole were discarded."""
    units = {page // size for page in after - before}
    whole = {u for u in units if all(u * size + n in after for n in range(size))}
    assert sorted(memory.pages()) == sorted(u * size + n for u in whole for n in range(size))
