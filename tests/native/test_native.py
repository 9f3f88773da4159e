"""The judgement of `make test-native`, and the files for its machine; nothing boots."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.native import around
from scripts.native.__main__ import Result, judge, show
from scripts.native.steps import STAGES, Step

STEP = Step("a step", "alice", "true", says=(r"^well \d+$",), silent=("Traceback",))


@pytest.mark.parametrize(
    ("code", "said", "wrong"),
    [
        (0, "before\nwell 1\nafter", ""),
        (3, "well 1\n", "exit code 3, not 0"),
        (0, "not well 1\n", "does not say"),
        (0, "well 1\nTraceback (most recent call last)", "says 'Traceback'"),
    ],
)
def test_step_is_judged_by_exit_code_and_output(code: int, said: str, wrong: str) -> None:
    found = judge(STEP, code, said)

    assert found.startswith(wrong) if wrong else not found


def test_table_counts_steps_that_are_right_wrong_and_not_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = [Result(STEP, 1.0, "", "5 passed"), Result(STEP, 2.0, "exit code 3, not 0", "")]

    show(results, 4)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1.0 s  ok  5 passed")
    assert "WRONG: exit code 3" in lines[1]
    assert lines[-1] == "1 steps are right, 1 wrong, 2 not run"


def test_every_stage_has_steps_of_known_users() -> None:
    steps = [step for stage in STAGES.values() for step in stage]

    assert {step.user for step in steps} == {"alice", "bob", "root"}
    assert all(STAGES.values())


def test_machine_gets_this_machines_settings_with_translated_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "git": "",
        "apt-config": 'Acquire::http::Proxy "http://localhost:3142/";\nAPT::Get "x";\n',
        "-m": "global.index-url='http://127.0.0.1:8000/simple'\nglobal.find-links='/wheels'\n",
    }
    monkeypatch.setattr(
        around, "_run", lambda command: next(answers[word] for word in command if word in answers)
    )
    monkeypatch.setattr(around, "mirror", lambda: "http://a.example/debian")
    monkeypatch.setenv("http_proxy", "http://localhost:3128")

    around.write_share(tmp_path)

    apt = (tmp_path / "etc/apt/apt.conf.d/99around").read_text()
    pip = (tmp_path / "etc/pip.conf").read_text()
    assert apt == 'Acquire::http::Proxy "http://10.0.2.2:3142/";\n'
    assert "index-url = http://10.0.2.2:8000/simple" in pip
    assert "wheels" not in pip
    assert (
        "http://a.example/debian bookworm main" in (tmp_path / "etc/apt/sources.list").read_text()
    )
    assert "http_proxy=http://10.0.2.2:3128" in (tmp_path / "etc/environment").read_text()
