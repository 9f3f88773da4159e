"""Snapshots with arbitrary states are read, or refused with one error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.base.output import printable
from pyvmm.commands.registers.show import show_registers
from pyvmm.commands.snapshot import diff as snapshot_diff
from pyvmm.commands.snapshot import show as snapshot_show
from pyvmm.errors import VmmError
from pyvmm.snapshot.compare import compare
from pyvmm.snapshot.snapshot import Snapshot
from pyvmm.snapshot.writer import write_snapshot
from tests.snapshot import sample
from tests.snapshot.files import save_machine

Path_ = tuple[str | int, ...]
VALUES: list[Any] = [
    None, True, -1, 0, 7, 1 << 31, 1 << 63, 1 << 64, 1 << 200, 1.5, 1e308,
    "", "x", "0x", "0x0", "-0x1", "0x" + "f" * 16, "0x" + "f" * 64, "0x" + "f" * 512,
    "\x1b[2J", "\ud800", "gicv2", "SVE", [], {}, [[]], {"a": 1},
    [128, 256], [-128], [1 << 40], {"0x0": "0x0"}, {"0x6030000000100040": "0x1"},
]  # fmt: skip


def leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Yield every place in a document."""
    if path:
        yield path
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, below in items:
        yield from leaves(below, (*path, key))


ORIGINAL: dict[str, Any] = json.loads(json.dumps(sample.state().document()))
PLACES = list(leaves(ORIGINAL))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.snap"
    save_machine(path, sample.state())
    return path


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.sampled_from(PLACES), st.sampled_from([*VALUES, "REMOVE"])),
        min_size=1,
        max_size=3,
    )
)
def test_snapshot_reads_or_refuses_any_state(
    good: Path, tmp_path: Path, changes: list[tuple[Path_, Any]]
) -> None:
    document = copy.deepcopy(ORIGINAL)
    for place, value in changes:
        change(document, place, value)
    write_snapshot(tmp_path / "bad.snap", document, [])

    try:
        look_at_everything(tmp_path / "bad.snap", good)
    except VmmError as error:
        assert error.message


def change(document: Any, place: Path_, value: Any) -> None:
    """Set a value at a place, if the place still exists."""
    for key in place[:-1]:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(document, dict):
        if value == "REMOVE":
            document.pop(place[-1], None)
        else:
            document[place[-1]] = value
    elif isinstance(document, list) and place[-1] in range(len(document)):
        document[int(place[-1])] = value


def look_at_everything(path: Path, good: Path) -> None:
    with Snapshot(path) as bad, Snapshot(good) as other:
        registers = [bad.registers(n, whole=n > 0) for n in range(len(bad.vcpus))]
        json.dumps(snapshot_show.document(bad, registers))
        for line in [*snapshot_show.lines(bad), *(x for r in registers for x in show_registers(r))]:
            printable(line).encode()
        for a, b in ((bad, other), (other, bad)):
            found = compare(a, b)
            json.dumps(snapshot_diff.document(path, good, found, found.differ))
            for line in snapshot_diff.lines(path, good, found):
                printable(line).encode()
