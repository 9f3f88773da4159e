"""The stop watch: what it takes from a guest's output."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from benchmarks import inside
from benchmarks.inside import Moment, Run

OUTPUT = (
    b"[    0.1] noise 12\r\nhvc 20 10\n......byte 300 100\r\nabout 3 words\nfrequency 62500000 1\n"
)


def test_said_in_finds_counts_between_other_words() -> None:
    said = list(inside.said_in(OUTPUT))

    assert [line[:3] for line in said] == [
        ("hvc", 20, 10), ("byte", 300, 100), ("frequency", 62500000, 1),
    ]  # fmt: skip
    assert [OUTPUT[: line.end].splitlines()[-1][-3:] for line in said] == [b" 10", b"100", b"0 1"]


def test_moment_is_idle_for_what_of_the_clock_nothing_was_done() -> None:
    assert Moment(size=0, spent=70, clock=100).idle == 30


def task(code: str) -> dict[str, Any]:
    return {"argv": [sys.executable, "-c", code], "environment": {}, "counted": False}


def test_run_says_what_a_command_had_spent_by_a_word_and_gives_it_input() -> None:
    stays = "print('one', flush=True); print(input() + '!', flush=True); input()"
    run = Run(task(stays))

    first = run.wait_for(b"one\n")
    run.type(b"two\n")
    second = run.wait_for(b"two!\n")
    resident = run.resident_kib()
    run.end()

    assert 0 < first < second
    assert run.moment(4).spent == first
    assert resident > 0


def test_run_that_ends_without_a_word_says_what_it_had_said() -> None:
    run = Run(task("import sys; print('no'); sys.exit('for a reason')"))

    with pytest.raises(SystemExit, match="for a reason"):
        run.wait_for(b"yes")

    run.end()
