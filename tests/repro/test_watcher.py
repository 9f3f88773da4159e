"""The watcher's answers; shell scripts stand for the program."""

from __future__ import annotations

import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.repro.programs import ChildEnded, numbers
from pyvmm.repro.watcher import Watcher, added

READY = "echo ready vl=64 lengths=11 holder=7"
TALLY = (
    "hold holds=2 bad=1 truncated=1 zeroed=0 foreign=0 low=0 p=1 ffr=1 vl_min=16 vl_max=64 "
    "rdvl=64 prctl=64 loops=900 loops_min=300 interrupted=2 moved=0 damaged=0 caught=0 missed=0 "
    "arm_failed=0"
)

Make = Callable[[str], Path]


@pytest.fixture
def program(tmp_path: Path) -> Make:
    """Return a function that makes a watcher of a shell script."""

    def make(script: str) -> Path:
        path = tmp_path / "sve-watcher"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(stat.S_IRUSR)  # it need not be executable
        return path

    return make


def test_watcher_reads_lengths_and_tallies(program: Make) -> None:
    script = f'{READY}; read a b c; test "$a $b $c" = "hold 500 2" && echo {TALLY}; read x'

    with Watcher(program(script), 1, 1) as watcher:
        tally = watcher.hold(500, 2)

    assert (watcher.vl, sorted(watcher.lengths)) == (64, [128, 256, 512])
    assert (tally["holds"], tally["vl_min"], tally["ffr"]) == (2, 16, 1)


def test_sum_of_tallies_keeps_extremes_and_the_last_lengths() -> None:
    ones = dict.fromkeys(numbers(TALLY.removeprefix("hold ")), 1)
    first = ones | {"vl_min": 16, "vl_max": 32, "rdvl": 16, "prctl": 16, "loops_min": 5}
    later = ones | {"vl_min": 32, "vl_max": 64, "rdvl": 64, "prctl": 64, "loops_min": 9}
    kept = {"vl_min": 16, "vl_max": 64, "rdvl": 64, "prctl": 64, "loops_min": 5}

    assert added(first, later) == dict.fromkeys(ones, 2) | kept


@pytest.mark.parametrize(
    ("script", "words", "number"),
    [
        ("echo failed sve 22", "cannot run here: sve: Invalid argument", 0),
        (f"{READY}; read x; echo died 9 0", "holder died: SIGKILL", 9),
        (f"{READY}; read x; echo died 0 3", "holder died: exit code 3", 0),
        (f"{READY}; read x; echo starved", "got no CPU time", 0),
        (f"{READY}; read x; kill -9 $$", "watcher died: SIGKILL", signal.SIGKILL),
        (f"{READY}; exit 4", "watcher died: exit code 4", 0),
    ],
)
def test_watcher_reports_why_the_program_ended(
    script: str, words: str, number: int, program: Make
) -> None:
    with pytest.raises(ChildEnded, match=words) as caught, Watcher(program(script), 1, 1) as w:
        w.hold(1000, 1)

    assert caught.value.signal == number
