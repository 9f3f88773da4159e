"""`pyvmm sve check` without a KVM, with fake results: output and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm import cli
from pyvmm.commands import sve
from pyvmm.commands.sve import check as sve_check
from pyvmm.kvm.system import System
from pyvmm.svecheck import runner
from pyvmm.svecheck.bench import SveHost
from pyvmm.svecheck.case import Case, CaseResult, Promise, Verdict

Capture = pytest.CaptureFixture[str]

CASE = Case("sets/empty", "choose it", Promise("refused", "api.rst", "4.68"), "EINVAL", str)
OK = CaseResult(CASE, Verdict.OK, "EINVAL", "EINVAL")
KNOWN = CaseResult(CASE, Verdict.KNOWN, "EINVAL", "ok", "since Linux 9")
DIFFERS = CaseResult(CASE, Verdict.DIFFERS, "EINVAL", "ok")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[CaseResult]:
    """Return the list that the test fills with the run's results."""
    found: list[CaseResult] = []

    def run(*_: Any) -> Iterator[CaseResult]:
        yield from found

    monkeypatch.setattr(sve_check, "run_here_or_forward", lambda *_: None)
    monkeypatch.setattr(System, "open", lambda: System(-1))
    monkeypatch.setattr(runner, "probe", lambda _: SveHost(frozenset({128}), frozenset()))
    monkeypatch.setattr(runner, "run", run)
    return found


def test_group_has_the_verbs_of_its_table(capsys: Capture) -> None:
    assert cli.main(["sve", "--help"]) == 0

    shown = capsys.readouterr().out
    assert all(
        f"  {name}" in shown and verb.summary in shown for name, verb in sve.COMMANDS.items()
    )


@pytest.mark.parametrize(
    ("found", "code"), [([OK, KNOWN], 0), ([OK, DIFFERS], 1)], ids=["known", "differs"]
)
def test_only_a_deviation_exits_with_1(
    found: list[CaseResult], code: int, results: list[CaseResult], capsys: Capture
) -> None:
    results.extend(found)

    assert cli.main(["sve", "check"]) == code

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["host", "cpu", "kernel", "lengths"]
    assert lines[3] == "lengths   128"
    assert lines[-1].startswith("2 cases: 1 ok, ")


def test_verbose_shows_what_each_case_does(results: list[CaseResult], capsys: Capture) -> None:
    results.append(OK)

    cli.main(["sve", "check", "-v"])

    assert capsys.readouterr().out.splitlines()[4:] == [
        "ok       sets/empty: EINVAL",
        "         action: choose it",
        "         document: refused (api.rst, 4.68)",
        "1 case: 1 ok, 0 differs, 0 known, 0 skipped",
    ]


def test_json_is_the_only_output_and_junit_is_written_too(
    results: list[CaseResult], capsys: Capture, tmp_path: Path
) -> None:
    results.append(KNOWN)
    file = tmp_path / "sve.xml"

    cli.main(["sve", "check", "--json", "--junit", str(file)])

    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert set(document["where"]) == {"host", "cpu", "kernel", "lengths"}
    assert [case["verdict"] for case in document["cases"]] == ["known"]
    assert file.read_bytes().startswith(b"<?xml")


def test_verdict_is_coloured_on_a_terminal_unless_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = "ok       sets/empty: EINVAL"
    plain = sve_check.paint(line, Verdict.OK)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)

    coloured = sve_check.paint(line, Verdict.OK)

    assert plain == line
    assert coloured == "\x1b[32mok\x1b[0m       sets/empty: EINVAL"
    monkeypatch.setenv("NO_COLOR", "1")
    assert sve_check.paint(line, Verdict.OK) == line
