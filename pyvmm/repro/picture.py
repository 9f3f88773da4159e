"""Line charts as SVG, for reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from pyvmm.base.records import Record

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 230, 30, 60  # margins; the legend is in the right one
# Distinct for colour-blind readers.  Source: Okabe and Ito, 2008.
COLOURS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: Final = ("", "7 4", "2 4")
APART: Final = 3  # pixels between lines with equal values
TICKS: Final = 8


class Line(Record):
    """A line through points, with its name in the legend."""

    name: str
    points: Mapping[int, int]


def svg(title: str, x: str, y: str, lines: Sequence[Line]) -> str:
    """Return the chart; the legend has the lines in the same order."""
    return "\n".join(_Picture(lines).parts(title, x, y)) + "\n"


class _Picture:
    """The chart of a set of lines, with its scales."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        xs = {x for line in lines for x in line.points}
        self._xs = sorted(xs) or [0]
        self._top = max((y for line in lines for y in line.points.values()), default=1)

    def parts(self, title: str, x: str, y: str) -> Iterator[str]:
        yield (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
               f'font-family="sans-serif" font-size="12">')  # fmt: skip
        yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        yield _text(LEFT, TOP - 12, title, weight="bold")
        yield from self._axes(x, y)
        for number, line in enumerate(self._lines):
            yield from self._line(number, line)
        yield "</svg>"

    def _axes(self, x: str, y: str) -> Iterator[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for value in self._xs:
            yield _text(self._x(value), bottom + 18, str(value), anchor="middle")
        step = max(16, -(-self._top // TICKS // 16) * 16)
        for value in range(0, self._top + 1, step):
            level = self._y(value)
            yield _path([(LEFT, level), (right, level)], "#dddddd", 1)
            yield _text(LEFT - 8, level + 4, str(value), anchor="end")
        yield _path([(LEFT, TOP), (LEFT, bottom), (right, bottom)], "black", 1)
        yield _text((LEFT + right) / 2, bottom + 42, x, anchor="middle")
        middle = (TOP + bottom) / 2
        yield (f'<g transform="rotate(-90 18 {middle:g})">'
               f'{_text(18, middle, y, anchor="middle")}</g>')  # fmt: skip

    def _line(self, number: int, line: Line) -> Iterator[str]:
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        shift = APART * (number - (len(self._lines) - 1) / 2)
        path = [(self._x(x), self._y(y) - shift) for x, y in sorted(line.points.items())]
        yield _path(path, colour, 2, dash)
        level = TOP + 10 + 20 * number
        start = WIDTH - RIGHT + 15
        yield _path([(start, level), (start + 24, level)], colour, 2, dash)
        yield _text(start + 30, level + 4, line.name)

    def _x(self, value: int) -> float:
        first, last = self._xs[0], self._xs[-1]
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - first) / max(1, last - first)

    def _y(self, value: int) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self._top


def _path(points: Sequence[tuple[float, float]], colour: str, width: int, dash: str = "") -> str:
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<polyline points="{shown}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}"{dashes}/>')  # fmt: skip


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(text)}</text>')  # fmt: skip
