"""The stop watch, and its reading of a guest's output."""

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


def test_moment_is_idle_for_the_time_without_instructions() -> None:
    assert Moment(size=0, spent=70, clock=100).idle == 30


def task(code: str) -> dict[str, Any]:
    return {"argv": [sys.executable, "-c", code], "environment": {}, "counted": False}


def test_run_returns_the_cost_up_to_a_word_and_passes_input() -> None:
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


def test_run_shows_the_output_of_a_command_that_ends_without_the_word() -> None:
    run = Run(task("import sys; print('no'); sys.exit('for a reason')"))

    with pytest.raises(SystemExit, match="for a reason"):
        run.wait_for(b"yes")

    run.end()


# A guest's words; the second comes when the first has been read.
CONSOLE = """
import array, fcntl, os, termios
os.write(1, b"\\nout\\n.")
unread = array.array("i", [1])
while unread[0]:
    fcntl.ioctl(1, termios.FIONREAD, unread)
os.write(1, b".\\nin\\n")
"""


def test_console_out_measures_only_the_way_out() -> None:
    found = inside.console_out(task(CONSOLE))

    assert set(found) == {"out", "out_rate"}


def test_lines_out_gives_the_guest_no_input() -> None:
    says = "print('frequency 1000000000 1'); print('hvc 20 10', end='\\n' + input())"

    assert inside.lines_out(task(f"input = str; {says}")) == {"hvc": 2.0}
