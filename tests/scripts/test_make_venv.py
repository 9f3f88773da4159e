"""scripts/make_venv.py refuses a bad path at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize("name", ["a$b", "a:b", "a{b"])
def test_path_that_pythons_tools_cannot_handle_is_refused(name: str, tmp_path: Path) -> None:
    clone = tmp_path / name
    shutil.copytree(SCRIPTS, clone / "scripts")

    done = subprocess.run(
        [sys.executable, "scripts/make_venv.py", ".venv"],
        cwd=clone, capture_output=True, text=True,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"pyvmm: the path {clone}/.venv holds {name[1]!r}, with which Python's tools fail\n"
        "  hint: move the clone, or make it again in another directory\n"
    )
    assert not (clone / ".venv").exists()
