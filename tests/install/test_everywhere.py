"""Installed by every installer, with every Python, and used after the clone is removed.

`make test-install` runs it. It takes minutes, and downloads from the package index.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm import __version__
from tests.distributions import Distributions, copy_tree, run
from tests.runtime import own_runtime_dir

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1200)]

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
ASK = "import sys; print('%d.%d' % sys.version_info[:2])"
# From any directory; `doctor` ends with 3 if this machine lacks an arm64 KVM.
SVE_VLS = ["run", "--sve-vls=128,256", "sve-vls"]
REPRO = ["repro", "zcr-el12", "--zcr", "0,5", "--control", "vl"]


def find_python(version: str) -> str:
    """Return the interpreter of a version, from pyenv or from PATH."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    for candidate in [*map(str, kept), f"python{version}"]:
        program = shutil.which(candidate)
        if program is not None:
            done = subprocess.run([program, "-c", ASK], capture_output=True, text=True)
            if done.stdout.strip() == version:  # a shim of pyenv on PATH may be disabled
                return program
    pytest.skip(f"no Python {version} on PATH, and none of pyenv's")


@pytest.fixture(scope="module", autouse=True)
def own_runtime_directory() -> Iterator[None]:
    """Use a runtime directory of these tests alone."""
    with own_runtime_dir("install"):
        yield


def from_wheel(place: Path, distributions: Distributions) -> Path:
    return distributions.wheel


def from_sdist(place: Path, distributions: Distributions) -> Path:
    return distributions.sdist


def from_clone(place: Path, distributions: Distributions) -> Path:
    copy_tree(place / "clone", built=False)
    return place / "clone"


SOURCES = {"wheel": from_wheel, "sdist": from_sdist, "clone": from_clone}
Source = Callable[[Path, Distributions], Path]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_pyvmm_works_when_pip_installed_it(
    source: Source, version: str, tmp_path: Path, distributions: Distributions
) -> None:
    python = find_python(version)
    what = source(tmp_path, distributions)

    run([python, "-m", "venv", str(tmp_path / "venv")])
    run([str(tmp_path / "venv/bin/python"), "-m", "pip", "-q", "install", str(what)])

    shutil.rmtree(tmp_path / "clone", ignore_errors=True)
    works(tmp_path / "venv/bin/pyvmm", tmp_path / "elsewhere")


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("tool", ["uv", "pipx"])
def test_pyvmm_works_when_a_tool_installed_it(
    tool: str, source: Source, tmp_path: Path, distributions: Distributions
) -> None:
    what = source(tmp_path, distributions)
    run([sys.executable, "-m", "venv", str(tmp_path / "tool")])
    run([str(tmp_path / "tool/bin/python"), "-m", "pip", "-q", "install", tool])
    homes = {
        "UV_TOOL_DIR": "tools", "UV_TOOL_BIN_DIR": "bin", "UV_CACHE_DIR": "uv-cache",
        "PIPX_HOME": "pipx", "PIPX_BIN_DIR": "bin", "PIPX_MAN_DIR": "man",
    }  # fmt: skip
    environment = {name: str(tmp_path / value) for name, value in homes.items()}
    words = {"uv": ["tool", "install", "--python", sys.executable], "pipx": ["install"]}

    run([str(tmp_path / "tool/bin" / tool), *words[tool], str(what)], **environment)

    shutil.rmtree(tmp_path / "clone", ignore_errors=True)
    works(tmp_path / "bin/pyvmm", tmp_path / "elsewhere")
    if tool == "pipx":
        assert (tmp_path / "man/man1/pyvmm.1").is_file()


def works(pyvmm: Path, directory: Path) -> None:
    """Use an installed pyvmm from an empty directory."""
    directory.mkdir()

    def use(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {n: value for n, value in os.environ.items() if n != "PYTHONPATH"}
        return subprocess.run(
            [pyvmm, *words], cwd=directory, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True,
        )  # fmt: skip

    assert use("--version").stdout == f"pyvmm {__version__}\n"
    assert use("doctor").returncode in (0, 3)
    guest = use(*SVE_VLS)
    assert guest.returncode == 0, guest.stderr
    assert guest.stdout.endswith("SVE vector lengths: 128 256\n")
    repro = use(*REPRO)
    assert "NOT REPRODUCED" in repro.stdout, repro.stderr
    assert use("man").stdout.startswith(".TH PYVMM 1")
    assert list(itertools.islice(directory.iterdir(), 1)) == []
