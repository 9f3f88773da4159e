"""The runner of fuzzing targets, with processes that stand for them."""

from __future__ import annotations

import sys
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


def play(monkeypatch: pytest.MonkeyPatch, directory: Path, **programs: str) -> None:
    """Let programs of Python stand for the targets."""
    monkeypatch.setattr(campaign, "BUILD", directory)
    monkeypatch.setattr(campaign, "corpus", lambda name: [])
    monkeypatch.setattr(
        campaign, "command", lambda name, *rest: [sys.executable, "-c", programs[name], *rest]
    )


def test_outcome_has_the_numbers_of_the_last_status_line() -> None:
    outcome = outcome_of("x", LOG, (), 0, 1.5)

    assert (outcome.executions, outcome.edges, outcome.features, outcome.inputs) == (700, 42, 77, 9)
    assert not outcome.failed


def test_run_succeeds_without_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, tmp_path, one=GOOD, two=GOOD)

    code = campaign.run(["one", "two"], 10)

    assert code == 0
    assert "1400 executions, 0 crashes" in capsys.readouterr().out


def test_run_does_not_count_a_slow_input_as_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, tmp_path, image=SLOW)

    code = campaign.run(["image"], 10)

    assert code == 0
    assert "0 executions, 0 crashes" in capsys.readouterr().out
    assert (tmp_path / "crashes/image/slow-unit-1").exists()


def test_run_fails_and_names_the_command_that_repeats_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, tmp_path, image=CRASH, two=GOOD)

    code = campaign.run(["image", "two"], 10)

    assert code == 1
    out = capsys.readouterr().out
    assert f"-m fuzz.target image {tmp_path}/crashes/image/crash-1" in out


def test_run_fails_if_a_target_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, tmp_path, one="import sys; sys.exit(3)")

    code = campaign.run(["one"], 10)

    assert code == 1
    assert f"one failed with exit code 3: see {tmp_path}/one.log" in capsys.readouterr().out
