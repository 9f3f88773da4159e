"""The reports of a sweep."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pyvmm.commands.sweep._line import command
from pyvmm.errors import UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.sweep import report
from pyvmm.sweep.drive import RunResult, RunVerdict
from pyvmm.sweep.plan import Guest, Run
from pyvmm.sweep.work import RunOutput
from tests.sweep.fake import PROBE

HERE = HostSettings()
HOSTS = {HERE: PROBE}


def result(verdict: RunVerdict, *, code: int | None = 0, left_out: int = 0) -> RunResult:
    run = Run(number=1, guest=Guest(image="dir/guest"), vls=frozenset({128}), where=HERE)
    run = run.replace(command=command(run))
    output = None
    if code is not None:
        output = RunOutput(
            code=code, seconds=1.5, stdout=b"\x1b[0mdone\0\n", stderr=b"", left_out=left_out,
            machine="blade",
        )  # fmt: skip
    return RunResult(run, verdict, output, "" if verdict is RunVerdict.PASSED else "why")


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([RunVerdict.PASSED, RunVerdict.PASSED], 0),
        ([RunVerdict.PASSED, RunVerdict.FAILED], 1),
        ([RunVerdict.TIMEOUT], 1),
        ([RunVerdict.BROKEN], 1),
        ([RunVerdict.PASSED, RunVerdict.LACKING], 3),
        ([RunVerdict.LACKING, RunVerdict.FAILED], 1),
        ([RunVerdict.LACKING, RunVerdict.STOPPED], 3),
        ([RunVerdict.STOPPED], 1),
        ([RunVerdict.REFUSED, RunVerdict.REFUSED], 2),
        ([RunVerdict.REFUSED, RunVerdict.LACKING], 1),
    ],
)
def test_exit_code_combines_the_verdicts(verdicts: list[RunVerdict], code: int) -> None:
    assert report.exit_code([result(verdict) for verdict in verdicts]) == code


def test_summary_counts_the_verdicts() -> None:
    results = [result(RunVerdict.PASSED), result(RunVerdict.FAILED), result(RunVerdict.PASSED)]

    assert report.summary(results) == "3 runs: 2 passed, 1 failed"
    assert report.summary(results[:1]) == "1 run: 1 passed"


def test_document_has_schema_hosts_and_runs() -> None:
    document = json.loads(
        json.dumps(report.document([result(RunVerdict.STOPPED, code=None)], HOSTS))
    )

    assert document["schema"] == report.SCHEMA
    assert document["hosts"][0]["probe"]["host"]["kernel"] == "Linux 6.12.0"
    assert document["counts"]["not finished"] == 1
    (run,) = document["runs"]
    assert (run["set"], run["verdict"], run["exit"]) == ([128], "not finished", None)
    assert run["command"].endswith(" --sve-vls=128 -- dir/guest")


def test_junit_distinguishes_failures_errors_and_skips() -> None:
    results = [
        result(RunVerdict.PASSED), result(RunVerdict.FAILED, code=1),
        result(RunVerdict.TIMEOUT, code=124),
        result(RunVerdict.LACKING, code=3), result(RunVerdict.STOPPED, code=None),
    ]  # fmt: skip

    root = ET.fromstring(report.junit_document(results, HOSTS, "dir/guest"))

    suite = root[0]
    counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped", "time")}
    assert counts == {
        "tests": "5", "failures": "2", "errors": "1", "skipped": "1", "time": "6.000"
    }  # fmt: skip
    failure = suite.findall("testcase")[1].find("failure")
    assert failure is not None
    assert failure.get("message") == "failed: why"
    assert suite.findall("testcase")[0].get("classname") == "pyvmm.sweep.guest"
    assert "Blade 7, Linux 6.12.0" in {p.get("value") for p in suite.iter("property")}


def test_log_has_the_command_the_output_and_the_verdict(tmp_path: Path) -> None:
    done = result(RunVerdict.FAILED, code=9, left_out=77)

    report.write_log(tmp_path, done)

    lines = (tmp_path / done.run.log_name).read_bytes().splitlines()
    assert lines[0].startswith(b"$ pyvmm run ")
    assert lines[1] == b"[77 bytes before this are left out]"
    assert lines[2] == b"\x1b[0mdone\0"
    assert lines[3] == b"[failed: exit 9 after 1.5 s on blade]"
    assert [*tmp_path.iterdir()] == [tmp_path / done.run.log_name]


def test_log_of_a_run_that_did_not_begin_has_its_verdict(tmp_path: Path) -> None:
    done = result(RunVerdict.STOPPED, code=None)

    report.write_log(tmp_path, done)

    assert (tmp_path / done.run.log_name).read_text().endswith("[not finished: why]\n")


def test_log_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match=r"`logs`=.*/file/logs: cannot be made: Not a directory"):
        report.log_directory(tmp_path / "file" / "logs")
