"""The messages of long steps."""

from __future__ import annotations

import io
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pyvmm.host import progress
from pyvmm.host.progress import Progress


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_step_prints_its_name_and_duration() -> None:
    out = io.StringIO()

    with Progress(out).step("making the root"):
        pass

    assert re.fullmatch(
        r"pyvmm: making the root \.\.\.\npyvmm: making the root: done in \d+\.\d s\n",
        out.getvalue(),
    )


def test_step_continues_if_its_messages_cannot_be_written() -> None:
    done = []
    with Path("/dev/full").open("w") as full:
        progress = Progress(full)
        with progress.step("making the root"), progress.watch(Path(), 1):
            done.append(1)
        with suppress(OSError):
            full.close()

    assert done


def test_step_that_fails_does_not_print_done() -> None:
    out = io.StringIO()

    with pytest.raises(OSError, match="full"), Progress(out).step("making the root"):
        raise OSError("full")

    assert out.getvalue() == "pyvmm: making the root ...\n"


def test_quiet_progress_prints_nothing(tmp_path: Path) -> None:
    out = Screen()
    quiet = Progress(out, quiet=True)

    quiet.say("words")
    with quiet.step("a step"), quiet.watch(tmp_path, 100):
        pass

    assert out.getvalue() == ""


def test_watch_prints_one_line_without_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()

    with Progress(out).watch(tmp_path, 36_800_000):
        pass

    assert out.getvalue() == "pyvmm:   downloading 36.8 MB\n"


def test_watch_updates_and_clears_its_line_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REFRESH_S", 0.01)
    out = Screen()

    with Progress(out).watch(tmp_path, 2_000_000):
        (tmp_path / "part").write_bytes(bytes(500_000))
        time.sleep(0.1)

    assert "0.5 of 2.0 MB (25 %)" in out.getvalue()
    assert out.getvalue().endswith("\r\033[K")
