"""A wheel and an sdist of this tree, built outside of it, and environments for them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The files that `make` and tools leave in a clone. With built guests no test compiles them.
# A hidden directory can be large: an environment, or a cache with emulated hosts' memory.
LEFT = (".*", "PKG-INFO", "build", "dist", "share", "*.egg-info", "__pycache__", "*.so")
BUILDS = ("guests", "programs", "tools")
NO_PROGRAMS = "/nonexistent"


@dataclass(frozen=True, slots=True)
class Distributions:
    """The two files."""

    sdist: Path
    wheel: Path


def build(directory: Path) -> Distributions:
    """Build an sdist from a copy of this tree, and a wheel from the sdist.

    A wheel without the extension is built without make and without a compiler.
    """
    tree = directory / "tree"
    copy_tree(tree, built=True)
    python_build(tree, directory, "--sdist")
    (sdist,) = directory.glob("*.tar.gz")
    run(["tar", "-C", str(directory), "-xf", str(sdist)])
    native = platform.machine() == "aarch64"
    path = os.environ["PATH"] if native else NO_PROGRAMS
    python_build(directory / sdist.name.removesuffix(".tar.gz"), directory, "--wheel", PATH=path)
    (wheel,) = directory.glob("*.whl")
    return Distributions(sdist, wheel)


def copy_tree(to: Path, *, built: bool) -> None:
    """Copy this tree like a fresh clone, or with its guests, as after `make guests`."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*LEFT))
    for name in BUILDS if built else ():
        shutil.copytree(ROOT / "build" / name, to / "build" / name)
    for name in () if built else ("guests", "programs"):
        shutil.rmtree(to / "pyvmm" / name, ignore_errors=True)


def python_build(tree: Path, out: Path, kind: str, **environment: str) -> None:
    """Run `python -m build` with this environment's packages: no network is needed.

    As under pipx, Python does not search the directory it runs in.
    """
    run([sys.executable, "-m", "build", "--no-isolation", kind, "-o", str(out), str(tree)],
        PYTHONSAFEPATH="1", **environment)  # fmt: skip


def venv_with(wheel: Path, place: Path) -> Path:
    """Make an environment with the wheel; its dependencies are this environment's.

    Returns: its bin directory.
    """
    run([sys.executable, "-m", "venv", "--without-pip", str(place)])
    python = place / "bin/python"
    run([sys.executable, "-m", "pip", "-q", "--python", str(python), "install", "--no-deps",
         "--no-index", str(wheel)])  # fmt: skip
    paths = {"base": str(place), "platbase": str(place)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.parent


def run(command: list[str], **environment: str) -> str:
    """Run a command and return its output; a failure shows the output."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
