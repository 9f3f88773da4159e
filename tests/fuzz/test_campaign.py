"""The runner of fuzzing targets, with processes that stand for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import campaign
from fuzz.campaign import outcome_of

LOG = """#2\tINITED cov: 12 ft: 13 corp: 1/4b exec/s: 0 rss: 30Mb
#512\tpulse  cov: 42 ft: 77 corp: 9/321b lim: 4 exec/s: 256 rss: 31Mb
stat::number_of_executed_units: 700
"""
GOOD = f"print({LOG!r})"
CRASH = """
import pathlib, sys
prefix = next(word for word in sys.argv if word.startswith("-artifact_prefix="))
pathlib.Path(prefix.partition("=")[2] + "crash-1").write_bytes(b"x")
sys.exit(77)
"""
SLOW = CRASH.replace("crash-1", "slow-unit-1").replace("77", "0")


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a campaign whose targets are programs of Python; return the exit code and the output."""
    monkeypatch.setattr(campaign, "BUILD", tmp_path)
    monkeypatch.setattr(campaign, "corpus", lambda name: [])

    def play(**programs: str) -> tuple[int, str]:
        monkeypatch.setattr(
            campaign, "command", lambda name, *rest: [sys.executable, "-c", programs[name], *rest]
        )
        code = campaign.run(list(programs), 10)
        return code, capsys.readouterr().out

    return play


def test_outcome_has_the_numbers_of_the_last_status_line() -> None:
    outcome = outcome_of("x", LOG, (), 0, 1.5)

    assert (outcome.executions, outcome.edges, outcome.features, outcome.inputs) == (700, 42, 77, 9)
    assert not outcome.failed


def test_run_succeeds_without_a_crash(run: Run) -> None:
    code, out = run(one=GOOD, two=GOOD)

    assert code == 0
    assert "1400 executions, 0 crashes" in out


def test_run_does_not_count_a_slow_input_as_a_crash(run: Run, tmp_path: Path) -> None:
    code, out = run(image=SLOW)

    assert code == 0
    assert "0 executions, 0 crashes" in out
    assert (tmp_path / "crashes/image/slow-unit-1").exists()


def test_run_fails_and_names_the_command_that_repeats_a_crash(run: Run, tmp_path: Path) -> None:
    code, out = run(image=CRASH, two=GOOD)

    assert code == 1
    assert f"-m fuzz.target image {tmp_path}/crashes/image/crash-1" in out


def test_run_fails_if_a_target_cannot_start(run: Run, tmp_path: Path) -> None:
    code, out = run(one="import sys; sys.exit(3)")

    assert code == 1
    assert f"one failed with exit code 3: see {tmp_path}/one.log" in out
