"""Completion in bash."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pyvmm import cli

# What bash does when Tab is pressed after the words: it calls the function that `complete` names.
PRESS_TAB = """
eval "$(pyvmm completion bash)"
compopt() { :; }
function=$(complete -p pyvmm | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
$function pyvmm
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ru"], ["run"]),
        (["host", "st"], ["start", "status", "stop"]),
        (["run", "--sve-m"], ["--sve-max-vl"]),
        (["run", "--console", "v"], ["virtio"]),
        (["run", "-c", "2", "sve-v"], ["sve-vls"]),
        (["sweep", "sve-v"], ["sve-vls"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes_verbs_options_and_images(
    words: list[str], offered: list[str], pyvmm_cmd: list[str]
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.fail("no bash: apt-get install bash")
    path = f"{Path(pyvmm_cmd[0]).parent}:{os.environ['PATH']}"

    done = subprocess.run(
        [bash, "--norc", "-c", PRESS_TAB, "bash", "pyvmm", *words],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_image_is_completed_to_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_PYVMM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "pyvmm run Ima")
    monkeypatch.setenv("COMP_CWORD", "2")

    assert cli.main([]) == 0
    assert capsys.readouterr().out == "file,Ima\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert f"_PYVMM_COMPLETE={shell}_complete" in capsys.readouterr().out
