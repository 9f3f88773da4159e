"""Verdicts on CPUs that execute replaced instructions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import UsageError
from pyvmm.repro import worker
from pyvmm.repro.cases import find, stale_code
from pyvmm.repro.model import Case, Evidence

STALE = find("stale-code")
TALLY = {"rounds": 500, "late": 9, "stale": 7, "controls": 5, "caught": 5}

Make = Callable[[str], Path]


@pytest.fixture
def patcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that makes a code-patcher of a shell script."""
    monkeypatch.setattr(stale_code, "cpus", lambda: frozenset({2, 4, 5}))

    def make(script: str) -> Path:
        path = tmp_path / "code-patcher"
        path.write_text(f"#!/bin/sh\n{script}\n")
        return path

    return make


def found(**others: Any) -> Evidence:
    return {"kernel": "Linux 6.1", "cpus": 2, **TALLY, **others}


def work(program: Path, seed: int = 3) -> Evidence:
    settings = STALE.read({"seconds": "2"})
    files = {"patcher": str(program)}
    return worker.do(Case(reproduction="stale-code", settings=settings, files=files, seed=seed))


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, ("REPRODUCED", 1)),
        ({"stale": 1, "rounds": 1}, ("REPRODUCED", 1)),
        ({"stale": 0}, ("NOT REPRODUCED", 0)),
        ({"stale": 0, "late": 0, "rounds": 100}, ("NOT REPRODUCED", 0)),
        ({"stale": 0, "rounds": 99}, ("INCONCLUSIVE", 3)),
        ({"stale": 0, "caught": 4}, ("INCONCLUSIVE", 3)),
        ({"caught": 4}, ("INCONCLUSIVE", 3)),
        ({"stale": 0, "caught": 0, "controls": 0}, ("INCONCLUSIVE", 3)),
    ],
)
def test_verdict_follows_from_the_counts(others: dict[str, int], expected: tuple[str, int]) -> None:
    finding = stale_code.judge(STALE.read({}), found(**others))

    assert (finding.verdict, finding.code) == expected


def test_host_with_one_cpu_is_unsupported() -> None:
    finding = stale_code.judge(STALE.read({}), {"kernel": "Linux 6.1", "cpus": 1})

    assert (finding.verdict, finding.code) == ("UNSUPPORTED", 3)


def test_patcher_gets_cpus_milliseconds_and_seed(patcher: Make, tmp_path: Path) -> None:
    said = tmp_path / "said"

    evidence = work(patcher(f'echo "$@" > {said}; echo patched rounds=1 late=0'))

    assert said.read_text() == "4 5 2000 3 1\n"
    assert (evidence["rounds"], evidence["late"]) == (1, 0)


@pytest.mark.parametrize(
    ("script", "trouble"),
    [
        ("echo failed time 110; exit 1", "code-patcher: time: Connection timed out"),
        ("exit 7", "code-patcher ended with 7"),
        ("kill -9 $$", "code-patcher ended with -9"),
    ],
)
def test_failure_of_the_patcher_is_inconclusive(patcher: Make, script: str, trouble: str) -> None:
    evidence = work(patcher(script))

    finding = stale_code.judge(STALE.read({}), evidence)
    assert (finding.verdict, finding.why) == ("INCONCLUSIVE", (trouble,))
    assert list(stale_code.show(STALE.read({}), evidence))


def test_patcher_that_hangs_is_killed(patcher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stale_code, "STARVED_S", -1.9)

    evidence = work(patcher("exec sleep 1000"))

    assert evidence["trouble"] == "code-patcher did not end in 0 s"


@pytest.mark.parametrize("text", ["0", "601", "1.5", "-1", "x", ""])
def test_seconds_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`seconds`"):
        STALE.read({"seconds": text})


def test_matrix_tries_both_kinds_of_page() -> None:
    tried = list(STALE.variants(STALE.read({})))

    assert [(name, settings["page"]) for name, settings in tried] == [
        ("page shared", "shared"), ("page alone", "alone"),
    ]  # fmt: skip


@pytest.mark.kvm
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", ["shared", "alone"])
def test_every_control_is_caught_on_a_real_machine(page: str) -> None:
    settings = STALE.read({"seconds": "1", "page": page})

    evidence = worker.do(Case(reproduction="stale-code", settings=settings, files={}))

    assert evidence["caught"] == evidence["controls"] == 5, evidence
    assert evidence["rounds"] >= evidence["late"] >= evidence["stale"] >= 0
    assert evidence["rounds"] > 0
