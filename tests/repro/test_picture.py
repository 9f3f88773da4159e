"""The picture of a report: valid SVG, with lines at their values."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from pyvmm.repro.picture import COLOURS, Line, svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(picture: str) -> dict[str, list[tuple[float, float]]]:
    """Return the longest line of each colour."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in ET.fromstring(picture).iter(f"{SVG}polyline"):
        points = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
        colour = line.get("stroke", "")
        found[colour] = max(found.get(colour, []), [(x, y) for x, y in points], key=len)
    return found


def test_line_rises_with_its_values() -> None:
    picture = svg("title", "x", "y", [Line("a model", {0: 16, 1: 32, 2: 64})])

    (_, first), (_, second), (_, third) = drawn(picture)[COLOURS[0]]
    assert first > second > third  # towards the top, which is 0
    assert abs((first - second) * 2 - (second - third)) < 0.5


def test_lines_with_equal_values_do_not_overlap() -> None:
    flat = {0: 64, 15: 64}

    lines = drawn(svg("t", "x", "y", [Line("one", flat), Line("two", flat)]))

    assert lines[COLOURS[0]] != lines[COLOURS[1]]


def test_names_are_escaped() -> None:
    picture = svg("<t> & co", "x", "y", [Line("a<b>", {0: 1})])

    texts = {text.text for text in ET.fromstring(picture).iter(f"{SVG}text")}
    assert {"<t> & co", "a<b>"} <= texts


def test_picture_without_lines_is_valid_svg() -> None:
    assert ET.fromstring(svg("t", "x", "y", [])).tag == f"{SVG}svg"
