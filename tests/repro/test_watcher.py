"""The watcher's answers; shell scripts stand for the program."""

from __future__ import annotations

import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.repro.watcher import Tally, Watcher, WatcherEnded

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
    assert (tally.holds, tally.vl_min, tally.ffr) == (2, 16, 1)


def test_sum_of_tallies_keeps_extremes_and_the_last_lengths() -> None:
    values = dict.fromkeys(Tally.record_fields, 1)
    first = Tally(**values | {"vl_min": 16, "vl_max": 32, "rdvl": 16, "loops_min": 5})
    second = Tally(**values | {"vl_min": 32, "vl_max": 64, "rdvl": 64, "loops_min": 9})

    total = first + second

    assert (total.vl_min, total.vl_max, total.rdvl, total.loops_min) == (16, 64, 64, 5)
    assert (total.holds, total.loops) == (2, 2)


@pytest.mark.parametrize(
    ("script", "words", "number", "starved"),
    [
        ("echo failed sve 22", "cannot run here: sve: Invalid argument", 0, False),
        (f"{READY}; read x; echo died 9 0", "holder died: SIGKILL", 9, False),
        (f"{READY}; read x; echo died 0 3", "holder died: exit code 3", 0, False),
        (f"{READY}; read x; echo starved", "got no CPU time", 0, True),
        (f"{READY}; read x; kill -9 $$", "watcher died: SIGKILL", signal.SIGKILL, False),
        (f"{READY}; exit 4", "watcher died: exit code 4", 0, False),
    ],
)
def test_watcher_reports_why_the_program_ended(
    script: str, words: str, number: int, starved: bool, program: Make
) -> None:
    with pytest.raises(WatcherEnded, match=words) as caught, Watcher(program(script), 1, 1) as w:
        w.hold(1000, 1)

    assert (caught.value.signal, caught.value.starved) == (number, starved)
