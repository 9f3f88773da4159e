"""The rows of the benchmarks: each row has a task, and each task a row."""

from __future__ import annotations

import dataclasses
from itertools import chain

import pytest

from benchmarks import inside, outside, rows, snapshots
from benchmarks.hosts import Results
from benchmarks.rows import Part, Row

PARTS = {
    **{f"counted {name}": part for name, part in rows.COUNTED.items()},
    **{f"timed {name}": part for name, part in rows.TIMED.items()},
    "check": rows.check,
}


@pytest.fixture(params=list(PARTS))
def part(request: pytest.FixtureRequest) -> Part:
    return PARTS[request.param]()


def used(wanted: list[Row]) -> set[str]:
    cells = chain.from_iterable(
        (row.ours, row.peer, row.floor, row.plain, row.lkvm) for row in wanted
    )
    return {cell.task for cell in cells if cell}


def test_rows_take_their_numbers_from_tasks_of_their_part(part: Part) -> None:
    assert used(part.rows) == {task["name"] for task in part.tasks}


def test_rows_of_a_part_have_different_titles(part: Part) -> None:
    titles = [row.title for row in part.rows]

    assert len(set(titles)) == len(titles)


def test_stop_watch_knows_every_kind_of_task(part: Part) -> None:
    assert {task["kind"] for task in part.tasks} <= inside.KINDS.keys()


def test_peer_gets_the_same_guest_as_pyvmm() -> None:
    tasks = {task["name"]: task["argv"] for task in rows.smp().tasks}

    for vcpus in ("1", "2", "4"):
        ours, theirs = (tasks[f"linux log {vcpus} {who}"] for who in ("pyvmm", "qemu"))
        ours = ours[ours.index("run") :]
        for option, peers, value in (
            ("-c", "-smp", vcpus),
            ("-m", "-m", "256"),
            ("-i", "-initrd", f"{rows.INSIDE}/initrd"),
        ):
            assert ours[ours.index(option) + 1] == theirs[theirs.index(peers) + 1] == value
        assert ours[-1] == theirs[-1] == f"{rows.INSIDE}/Image"


def test_part_has_tasks_of_lkvm_only_with_an_lkvm(part: Part) -> None:
    without = part.tasks_of(lkvm=False)

    assert rows.LKVM not in {task["argv"][0] for task in without}
    assert part.tasks_of(lkvm=True) == part.tasks
    assert used([dataclasses.replace(row, lkvm=None) for row in part.rows]) == {
        task["name"] for task in without
    }


def test_lkvm_gets_the_options_of_pyvmm() -> None:
    tasks = {task["name"]: task["argv"] for task in rows.linux().tasks}

    ours, lkvms = (tasks[f"linux log 1 {who}"] for who in ("pyvmm", "lkvm"))
    ours, image = ours[ours.index("run") + 1 : -1], ours[-1]

    assert lkvms[-len(ours) - 2 :] == [*ours, "-k", image]


def test_every_result_of_snapshots_has_rows() -> None:
    case = {
        "pyvmm": {what: {"median": 1.0} for what in ("save", "lazy", "eager", "size")},
        "qemu": {what: {"median": 2.0} for what in ("save", "restore", "size")},
    }
    results: Results = {}
    for guest, mib, place in snapshots.CASES:
        results |= snapshots.results(guest, mib, place, case)

    for row in snapshots.rows():
        assert row.peer is not None
        assert results[row.ours.task] == [{**results[row.ours.task][0], row.ours.value: 1.0}]
        assert results[row.peer.task][0][row.peer.value] == 2.0


def test_rows_of_the_outer_machine_are_in_seconds() -> None:
    assert {row.unit.timed for row in outside.ROWS} == {"s"}
