"""Reports of a run: for people, programs and continuous integration."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from pyvmm.svecheck import report
from pyvmm.svecheck.case import Case, CaseResult, Promise, Verdict

CASE = Case("states/run-created", "KVM_RUN", Promise("refused", "api.rst", "4.82"), "ENOEXEC", str)
OK = CaseResult(CASE, Verdict.OK, "ENOEXEC", "ENOEXEC", seconds=0.25)
DIFFERS = CaseResult(CASE, Verdict.DIFFERS, "ENOEXEC", "ok & <more>")
KNOWN = CaseResult(CASE, Verdict.KNOWN, "ENOEXEC", "ok", "since Linux 9")
SKIPPED = CaseResult(CASE, Verdict.SKIPPED, "ENOEXEC", "", "needs a host with a hole")
ALL = [OK, DIFFERS, KNOWN, SKIPPED]
WHERE = {"host": "emulated: QEMU 7.2", "kernel": "Linux 6.1"}


def test_case_that_is_ok_is_one_line() -> None:
    assert list(report.lines(OK)) == ["ok       states/run-created: ENOEXEC"]


def test_deviation_has_action_document_and_outcome() -> None:
    assert list(report.lines(DIFFERS)) == [
        "differs  states/run-created: ok & <more>",
        "         action: KVM_RUN",
        "         document: refused (api.rst, 4.82)",
        "         promised: ENOEXEC",
    ]


def test_known_difference_and_skip_have_their_reason() -> None:
    assert list(report.lines(KNOWN))[2] == "         known: since Linux 9"
    assert list(report.lines(SKIPPED)) == ["skipped  states/run-created: needs a host with a hole"]


def test_summary_counts_every_verdict() -> None:
    assert report.summary(ALL) == "4 cases: 1 ok, 1 differs, 1 known, 1 skipped"


@pytest.mark.parametrize(("results", "code"), [(ALL, 1), ([OK, KNOWN, SKIPPED], 0), ([], 0)])
def test_exit_code_is_failure_only_after_a_deviation(results: list[CaseResult], code: int) -> None:
    assert report.exit_code(results) == code


def test_json_has_the_schema_the_host_and_all_results() -> None:
    document = json.loads(json.dumps(report.document(ALL, WHERE)))

    assert (document["schema"], document["where"]) == (1, WHERE)
    assert document["counts"] == {"ok": 1, "differs": 1, "known": 1, "skipped": 1}
    assert document["cases"][2] == {
        "name": "states/run-created",
        "verdict": "known",
        "done": "KVM_RUN",
        "says": "refused",
        "source": "api.rst, 4.82",
        "expected": "ENOEXEC",
        "got": "ok",
        "why": "since Linux 9",
        "seconds": 0.0,
    }


def test_junit_has_a_failure_only_for_a_deviation() -> None:
    suite = ET.fromstring(report.junit_document(ALL, WHERE))[0]

    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "0", "skipped": "1"}
    children = [[child.tag for child in entry] for entry in suite.iter("testcase")]
    assert children == [["system-out"], ["failure"], ["system-out"], ["skipped"]]
    failure = next(suite.iter("failure"))
    assert failure.get("message") == "ok & <more>, not ENOEXEC"
    assert "refused (api.rst, 4.82)" in (failure.text or "")
    assert {p.get("name"): p.get("value") for p in suite.iter("property")} == WHERE
