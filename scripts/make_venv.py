#!/usr/bin/env python3
"""Make .venv with pyvmm in it, on a machine that may have nothing but python3 and apt.

Usage: make_venv.py VENV [EXTRA...].  It uses the standard library alone, and pyvmm's own private
apt if Python comes without pip (Debian's python3 without python3-venv).  It writes VENV/.ready
last.  Without that file, the next call starts over.  With an EXTRA, it adds to a ready .venv.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
OLDEST = (3, 11)
# Forbidden in a path: venv refuses a colon, setuptools reads the others as its own variables, and
# a script's first line cannot name an interpreter whose path has a newline.
BAD = frozenset(":$\n{}")
OFFLINE = ("No matching distribution found", "Could not fetch URL", "Temporary failure")


def main() -> int:
    """Make the environment, or report what is missing and how to get it."""
    venv, extras = Path(sys.argv[1]).absolute(), sys.argv[2:]
    if sys.version_info < OLDEST:
        return _refuse(f"Python {platform.python_version()} is too old: pyvmm needs 3.11",
                       "make PYTHON=python3.11 run, or apt-get install python3.11")  # fmt: skip
    if bad := sorted(set(str(venv)) & BAD):
        return _refuse(f"the path {venv} holds {' '.join(map(repr, bad))}, "
                       "with which Python's tools fail",
                       "move the clone, or make it again in another directory")  # fmt: skip
    lacking = _lacking_for_the_extension()
    if lacking:
        return _refuse(f"building the KVM extension needs {', '.join(lacking)}",
                       f"{_installer()} install {' '.join(lacking)}")  # fmt: skip
    started = time.monotonic()
    if not extras or not (venv / ".ready").exists():
        print(f"making {venv.name} (Python {platform.python_version()}) ...", flush=True)
        shutil.rmtree(venv, ignore_errors=True)
        if not _make(venv):
            return 1
    print(f"installing {'what the tests need' if extras else 'pyvmm and what it needs'} ...",
          flush=True)  # fmt: skip
    what = f".[{','.join(extras)}]" if extras else "."  # pip reads [] in a path as extras
    if not _logged("pip.log", "pip", [*_pip(venv), "install", "-e", what]):
        said = (ROOT / "build/pip.log").read_text(errors="replace")
        if any(words in said for words in OFFLINE):
            print("  hint: check that this machine reaches its Python package index",
                  file=sys.stderr)  # fmt: skip
        return 1
    (venv / ".ready").touch()
    print(f"{venv.name} is ready after {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _make(venv: Path) -> bool:
    """Make the bare environment, with pip if this Python comes with one."""
    bare = [] if importlib.util.find_spec("ensurepip") is not None else ["--without-pip"]
    return _logged("venv.log", "python -m venv", [sys.executable, "-m", "venv", *bare, str(venv)])


def _pip(venv: Path) -> list[str]:
    """Return the command that runs the environment's pip."""
    python = str(venv / "bin/python")
    if list(venv.glob("lib/python*/site-packages/pip")):
        return [python, "-m", "pip"]
    return [python, f"{_pip_wheel()}/pip"]


def _logged(log: str, what: str, command: list[str]) -> bool:
    """Run a command with its output in build/LOG; show the end of it on failure."""
    logged = ["sh", str(ROOT / "scripts/logged.sh"), f"build/{log}", what, *command]
    quiet = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(logged, cwd=ROOT, env=quiet).returncode == 0


def _pip_wheel() -> Path:
    """Return Debian's own pip as a wheel: from the system, or unpacked privately."""
    from pyvmm.host.parts.tools import TOOLS_SUITE, tree
    from pyvmm.host.progress import Progress

    pattern = "usr/share/python-wheels/pip-*.whl"
    found = sorted(Path("/").glob(pattern))
    if not found:
        root = tree("pip", TOOLS_SUITE, ["python3-pip-whl"], Progress())
        found = sorted(root.glob(pattern))
    return found[-1]


def _lacking_for_the_extension() -> list[str]:
    """Return the packages that the C extension needs and this machine lacks (arm64 only)."""
    if not sysconfig.get_platform().endswith("-aarch64"):
        return []
    there = (
        shutil.which("gcc") is not None,
        Path("/usr/include/linux/kvm.h").exists(),
        (Path(sysconfig.get_path("include")) / "Python.h").exists(),
    )
    names = ("gcc", "glibc-devel", "python3-devel")
    if _installer() == "apt-get":
        names = ("gcc", "libc6-dev", _debian_headers())
    return [name for name, found in zip(names, there, strict=True) if not found]


def _debian_headers() -> str:
    """Return the Debian package of this Python's headers."""
    usual = Path(sys.executable).resolve() == Path("/usr/bin/python3").resolve()
    return "python3-dev" if usual else f"python3.{sys.version_info.minor}-dev"


def _installer() -> str:
    """Return this system's package manager: Fedora has dnf, and may have apt beside it."""
    return "dnf" if shutil.which("dnf") and not Path("/etc/debian_version").exists() else "apt-get"


def _refuse(what: str, remedy: str) -> int:
    prefix = "" if os.geteuid() == 0 or not remedy.startswith(("apt-get", "dnf")) else "sudo "
    print(f"pyvmm: {what}\n  hint: {prefix}{remedy}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # one line without a traceback
        if os.environ.get("PYVMM_DEBUG"):
            raise
        sys.exit(_refuse(f"{error}", getattr(error, "hint", "") or "PYVMM_DEBUG=1 shows more"))
