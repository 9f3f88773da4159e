"""The contents of a wheel and an sdist: the files of the tree, and built files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from hashlib import sha256
from pathlib import Path, PurePosixPath

import pytest

from pyvmm.host.parts import payload
from tests import distributions as distributions_module
from tests.distributions import ROOT, Distributions, copy_tree, python_build

GUESTS = {f"pyvmm/guests/{name}" for name in ("hello", "sve-vls", "zcr-el12")}
BUILT = GUESTS | {"pyvmm/programs/sve-watcher"}
SHARED = {
    "share/man/man1/pyvmm.1",
    "share/bash-completion/completions/pyvmm",
    "share/zsh/site-functions/_pyvmm",
    "share/fish/vendor_completions.d/pyvmm.fish",
}
# Lists the files of the installed package, with their content
LISTING = """
import hashlib, importlib.resources, json, sys

def files(directory, prefix=""):
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from files(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, hashlib.sha256(entry.read_bytes()).hexdigest()

json.dump(dict(files(importlib.resources.files("pyvmm"))), sys.stdout)
"""


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_copy_of_a_tree_has_no_hidden_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches in the tree have filled a disk: a host's memory is a sparse file of 4 GiB."""
    monkeypatch.setattr(distributions_module, "ROOT", tmp_path / "tree")
    (tmp_path / "tree/.cache-of-mine/pyvmm").mkdir(parents=True)
    (tmp_path / "tree/README.md").touch()

    copy_tree(tmp_path / "copy", built=False)

    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["README.md"]


def test_wheel_shows_importlib_every_file_of_the_tree(distributions: Distributions) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-c", LISTING],
        env={**os.environ, "PYTHONPATH": str(distributions.wheel)},
        cwd=distributions.wheel.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    found = {name: digest for name, digest in found.items() if not name.endswith(".so")}

    assert found == {
        str(path): sha256((ROOT / "pyvmm" / path).read_bytes()).hexdigest()
        for path in payload.files()
    }


def test_wheel_holds_built_files(distributions: Distributions) -> None:
    held = names(distributions.wheel)

    assert held >= BUILT
    assert {name.partition(".data/data/")[2] for name in held} - {""} == SHARED


def test_sdist_holds_built_files_and_all_sources(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        held = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    tree = {
        str(path.relative_to(ROOT))
        for top in ("benchmarks", "docs", "guests", "programs", "pyvmm", "scripts", "tests")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }

    assert held >= BUILT | SHARED
    assert held >= tree | {"Makefile", "README.md", "CONTRIBUTING.md", "LICENSE", "setup.py"}


def test_wheel_for_x86_has_no_machine_in_its_name_and_no_extension(
    distributions: Distributions,
) -> None:
    native = platform.machine() == "aarch64"
    extension = "pyvmm/kvm/_kvm.abi3.so" in names(distributions.wheel)

    assert extension == native
    assert distributions.wheel.name.endswith("-py3-none-any.whl") != native


def test_wheel_for_arm64_is_abi3_and_holds_the_extension(
    tmp_path: Path, cross_gcc: Path, python_headers: Path
) -> None:
    copy_tree(tmp_path / "tree", built=True)

    python_build(
        tmp_path / "tree", tmp_path, "--wheel",
        _PYTHON_HOST_PLATFORM="linux-aarch64",
        # By name, as setuptools splits these at spaces and quotes
        PATH=f"{cross_gcc.parent}:{os.environ['PATH']}",
        CC=cross_gcc.name,
        LDSHARED=f"{cross_gcc.name} -shared",
        CFLAGS=f"-I{python_headers} -I{python_headers.parent}",
    )  # fmt: skip

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-cp311-abi3-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        header = archive.read("pyvmm/kvm/_kvm.abi3.so")[:20]
    assert header.startswith(b"\x7fELF")
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64
    assert names(wheel) >= BUILT


def test_wheel_holds_no_removed_module(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    copy_tree(tree, built=True)
    old = tree / "build/lib/pyvmm/old.py"
    old.parent.mkdir(parents=True)
    old.touch()

    python_build(tree, tmp_path, "--wheel")

    (wheel,) = tmp_path.glob("*.whl")
    assert "pyvmm/old.py" not in names(wheel)


def test_build_without_make_says_what_to_install(tmp_path: Path) -> None:
    copy_tree(tmp_path / "tree", built=False)
    (tmp_path / "bin").mkdir()
    gcc = tmp_path / "bin/aarch64-linux-gnu-gcc"
    gcc.write_text("#!/bin/sh\nexit 1\n")
    gcc.chmod(0o755)

    done = subprocess.run(
        [sys.executable, "-m", "build", "-n", "--wheel", "-o", str(tmp_path), tmp_path / "tree"],
        env={**os.environ, "PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )

    assert done.returncode != 0
    assert "pyvmm: building the guests needs make\n  hint: apt-get install make" in done.stderr


def test_build_requires_the_dependencies_of_a_run() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert {*project["project"]["dependencies"]} <= {*project["build-system"]["requires"]}
