"""``pyvmm snapshot diff``: the differences between two snapshots."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from pyvmm.commands._options import json_option, trust_option
from pyvmm.commands._output import counted, show
from pyvmm.commands.registers.addresses import symbols_option
from pyvmm.debugger.symbols import Names, Symbols
from pyvmm.errors import EXIT_FAILED, EXIT_OK
from pyvmm.snapshot.compare import Change, Comparison, MemoryChange, TagChange, compare, page_count
from pyvmm.snapshot.format import PAGE
from pyvmm.snapshot.snapshot import Snapshot

SCHEMA = 1
DETAILS = 8  # lanes or fields that are shown
LONG = 40  # characters of a value: longer ones are shown by lanes or fields
RANGES = 32  # of memory that are shown
# Registers that may have an address of the guest's code or data
ADDRESSES = re.compile(r"X\d+|PC|SP_EL\d|ELR_EL\d|FAR_EL\d|VBAR_EL\d")
VALUE = re.compile(r"0x[0-9a-f]{1,16}\b")


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Count expected differences too.")
@symbols_option
@trust_option
@json_option
def diff(a: Path, b: Path, strict: bool, symbols: Path | None, trust: bool, as_json: bool) -> int:
    """Show the differences between two snapshots, and exit with 1 if there are any.

    Compare registers with their fields and lanes, the interrupt controller, devices, the machine,
    and memory as ranges of pages. Some differences are expected: even two saves of one paused
    machine have them, for example in counters. They are listed apart, and do not affect the exit
    code.
    """
    names = None if symbols is None else Symbols.open(symbols)
    with Snapshot(a, trust=trust) as left, Snapshot(b, trust=trust) as right:
        found = compare(left, right)
    differ = found.differ or (strict and found.found)
    show(as_json, document(a, b, found, differ), lines(a, b, found, names))
    return EXIT_FAILED if differ else EXIT_OK


def document(a: Path, b: Path, found: Comparison, differ: bool) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "a": str(a),
        "b": str(b),
        "differ": differ,
        "changes": [
            {**asdict(change), "details": [detail._asdict() for detail in change.details],
             "expected": change.expected or None}
            for change in found.changes
        ],
        "memory": [
            {"start": f"{change.start:#x}", "end": f"{change.end:#x}",
             "expected": change.expected or None}
            for change in found.memory
        ],
        "tags": [
            {"start": f"{change.start:#x}", "end": f"{change.end:#x}",
             "granules": change.granules,
             "first": [{"address": name, "a": a, "b": b} for name, a, b in change.first]}
            for change in found.tags
        ],
    }  # fmt: skip


def lines(a: Path, b: Path, found: Comparison, names: Names | None = None) -> Iterator[str]:
    """Yield the differences as text; ``names`` name the addresses in general registers."""
    if not found.found:
        yield f"{a} and {b} are the same"
        return
    unexpected = (change for change in found.changes if not change.expected)
    for where, changes in groupby(unexpected, lambda change: change.where):
        yield where
        for change in changes:
            yield from _change(change)
            if names is not None and ADDRESSES.fullmatch(change.name):
                yield from _named(change, names)
    memory = tuple(change for change in found.memory if not change.expected)
    yield from _memory(memory)
    yield from _tags(found.tags)
    yield from _expected(found)


def _change(change: Change) -> Iterator[str]:
    start = f"  {change.name:17} "
    one, other = (value if value is not None else "not there" for value in (change.a, change.b))
    if not change.details or max(len(one), len(other)) <= LONG:
        yield f"{start}{one} -> {other}"
        start = " " * len(start)
    told = [f"{name} {a} -> {b}" for name, a, b in change.details[:DETAILS]]
    lanes = any("[" in name for name, _, _ in change.details)
    for line in told if lanes else filter(None, [", ".join(told)]):
        yield f"{start}{line}"
        start = " " * len(start)
    if len(change.details) > DETAILS:
        yield f"{start}and {len(change.details) - DETAILS} more"


def _named(change: Change, names: Names) -> Iterator[str]:
    """Yield a line with the symbols of a register's values, if it has any."""
    texts = [value if value is not None else "" for value in (change.a, change.b)]
    numbers = [VALUE.match(text) for text in texts]
    found = [names.name(int(match[0], 16)) if match else "" for match in numbers]
    if any(found):
        yield f"  {'':17} {found[0] or 'no symbol'} -> {found[1] or 'no symbol'}"


def _memory(memory: tuple[MemoryChange, ...]) -> Iterator[str]:
    if not memory:
        return
    yield f"memory: {counted(page_count(memory), 'page')} in {counted(len(memory), 'range')}"
    for change in memory[:RANGES]:
        pages = (change.end - change.start) // PAGE
        yield f"  {change.start:#x}-{change.end:#x}  {counted(pages, 'page')}"
    if len(memory) > RANGES:
        yield f"  and {len(memory) - RANGES} more"


def _tags(tags: tuple[TagChange, ...]) -> Iterator[str]:
    if not tags:
        return
    granules = sum(change.granules for change in tags)
    yield f"memory tags: {counted(granules, 'granule')} in {counted(len(tags), 'range')} of pages"
    for change in tags[:RANGES]:
        first = ", ".join(f"{name} {a} -> {b}" for name, a, b in change.first)
        more = ", ..." if change.granules > len(change.first) else ""
        yield (
            f"  {change.start:#x}-{change.end:#x}  {counted(change.granules, 'granule')}: "
            f"{first}{more}"
        )
    if len(tags) > RANGES:
        yield f"  and {len(tags) - RANGES} more"


def _expected(found: Comparison) -> Iterator[str]:
    """Yield the expected differences by reason."""
    reasons: dict[str, list[str]] = {}
    for change in found.changes:
        if change.expected:
            place = "" if change.where == "machine" else f"{change.where} "
            reasons.setdefault(change.expected, []).append(f"{place}{change.name}")
    for piece in found.memory:
        if piece.expected:
            reasons.setdefault(piece.expected, []).append(f"{piece.start:#x}-{piece.end:#x}")
    if reasons:
        yield "expected"
    for reason, names in reasons.items():
        more = f" and {len(names) - DETAILS} more" if len(names) > DETAILS else ""
        yield f"  {', '.join(names[:DETAILS])}{more}: {reason}"
