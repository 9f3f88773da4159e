"""The wheel, installed into an environment of its own and used from another directory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import pyvmm as under_test
from tests.distributions import build, venv_with
from tests.e2e.conftest import FIRST_S, Pyvmm

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin directory of an environment with pyvmm's wheel."""
    place = tmp_path_factory.mktemp("installed")
    return venv_with(build(place).wheel, place / "venv")


def test_installed_pyvmm_runs_a_guest_from_anywhere(installed: Path, tmp_path: Path) -> None:
    pyvmm = Pyvmm([str(installed / "pyvmm")])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    version = pyvmm("--version", cwd=tmp_path, env=environment)
    place = subprocess.run(
        [installed / "python", "-c", "import pyvmm; print(pyvmm.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    done = pyvmm("run", "hello", cwd=tmp_path, env=environment, timeout=FIRST_S)

    assert version.stdout == f"pyvmm {under_test.__version__}\n"
    assert place.stdout.startswith(str(installed.parent))
    assert (done.returncode, "Hello" in done.stdout) == (0, True), done.stderr


def test_manual_page_and_completion_are_where_man_and_shells_search(installed: Path) -> None:
    share = installed.parent / "share"

    assert (share / "man/man1/pyvmm.1").read_text().startswith(".TH PYVMM 1")
    for name in ("bash-completion/completions/pyvmm", "zsh/site-functions/_pyvmm",
                 "fish/vendor_completions.d/pyvmm.fish"):  # fmt: skip
        assert "_PYVMM_COMPLETE=" in (share / name).read_text()
