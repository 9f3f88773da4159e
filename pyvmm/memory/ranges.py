"""Ranges of guest physical addresses: the first address, and the one after the last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

Range = tuple[int, int]

_RUNS: Final = re.compile(b"\x01+")


def runs(flags: bytes, start: int, page: int) -> Iterator[Range]:
    """Yield the ranges of pages with flag 1; the first flag belongs to the page at ``start``.

    ``page`` is the size of a page in bytes.
    """
    for run in _RUNS.finditer(flags):
        yield start + run.start() * page, start + run.end() * page


def merged(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """Return the ranges in order, and join those that overlap or lie within ``gap`` bytes."""
    found: list[Range] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + gap:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def clipped(ranges: Iterable[Range], low: int, high: int) -> list[Range]:
    """Return the parts of the ranges that lie between two addresses."""
    return [(max(a, low), min(b, high)) for a, b in ranges if a < high and b > low]


def without(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """Return the parts of the ranges that are in no hole; both are sorted, without overlaps."""
    left = []
    pending = list(holes)[::-1]
    for low, high in ranges:
        while pending and pending[-1][1] <= low:
            pending.pop()
        at = low
        for hole_low, hole_high in reversed(pending):
            if hole_low >= high:
                break
            if hole_low > at:
                left.append((at, hole_low))
            at = max(at, hole_high)
        if at < high:
            left.append((at, high))
    return left


def whole(ranges: Iterable[Range], page: int) -> list[Range]:
    """Return the whole pages around ranges of bytes, in order."""
    return merged((low // page * page, -(-high // page) * page) for low, high in ranges)
