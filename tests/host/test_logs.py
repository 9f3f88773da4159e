"""The errors of failed tools, and their logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.base.dirs import cache_dir
from pyvmm.host.logs import LAST_LINES, failure

PAGES = "".join(f"error {number}\n" for number in range(400))


def test_failure_shows_one_line_of_output() -> None:
    error = failure("mkfs.erofs", "no space\n", hint="free some")

    assert (error.message, error.hint) == ("mkfs.erofs: no space", "free some")
    assert not (cache_dir() / "logs").exists()


def test_failure_says_that_a_silent_tool_gave_no_reason() -> None:
    assert failure("dtc", " \n").message == "dtc: no reason given"


def test_failure_shows_the_last_lines_and_a_log_of_long_output() -> None:
    first, *lines, last = failure("gcc -c ...", PAGES).message.splitlines()

    assert first == "gcc -c ...:"
    assert lines == [f"    error {number}" for number in range(400 - LAST_LINES, 400)]
    assert last == f"  log: {cache_dir()}/logs/gcc.log"
    assert (cache_dir() / "logs/gcc.log").read_text() == PAGES


def test_failure_writes_the_whole_output_to_the_log() -> None:
    error = failure("apt-get update", "no route", whole="W: old\nE: no route\n")

    log = cache_dir() / "logs/apt-get.log"
    assert error.message == f"apt-get update: no route\n  log: {log}"
    assert log.read_text() == "W: old\nE: no route\n"


def test_failure_names_an_existing_log(tmp_path: Path) -> None:
    error = failure("QEMU ended", "bye", log=tmp_path / "qemu.log")

    assert error.message == f"QEMU ended: bye\n  log: {tmp_path}/qemu.log"
    assert not (cache_dir() / "logs").exists()


def test_failure_shows_the_same_error_when_the_log_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyvmm").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert failure("gcc", PAGES).message.endswith("    error 399")
