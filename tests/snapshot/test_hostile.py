"""Snapshots with arbitrary states are read, or refused with one error."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.errors import VmmError
from pyvmm.snapshot.writer import write_snapshot
from tests.snapshot import sample
from tests.snapshot.files import save_machine
from tests.snapshot.looking import look_at_everything
from tests.snapshot.mutations import Place, leaves

VALUES: list[Any] = [
    None, True, -1, 0, 7, 1 << 31, 1 << 63, 1 << 64, 1 << 200, 1.5, 1e308,
    "", "x", "0x", "0x0", "-0x1", "0x" + "f" * 16, "0x" + "f" * 64, "0x" + "f" * 512,
    "\x1b[2J", "\ud800", "gicv2", "SVE", [], {}, [[]], {"a": 1},
    [128, 256], [-128], [1 << 40], {"0x0": "0x0"}, {"0x6030000000100040": "0x1"},
]  # fmt: skip


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
    good: Path, tmp_path: Path, changes: list[tuple[Place, Any]]
) -> None:
    document = copy.deepcopy(ORIGINAL)
    for place, value in changes:
        change(document, place, value)
    write_snapshot(tmp_path / "bad.snap", document, [])

    try:
        look_at_everything(tmp_path / "bad.snap", good)
    except VmmError as error:
        assert error.message


def change(document: Any, place: Place, value: Any) -> None:
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
