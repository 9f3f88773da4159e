#!/usr/bin/env python3
"""Run the unit tests on every Python that pyvmm supports: ``make test-pythons``.

Usage: test_pythons.py [--debian] [--into DIRECTORY] [VERSION...], by default 3.11 to 3.14.

The script searches for a version on PATH, in pyenv and in uv. It unpacks a missing version
privately, without root, from the Debian suite that has it. With ``--debian`` it does so for
installed versions too. Each version gets an environment, a log and a JUnit file in build/pythons.
Python's warnings are errors, because the next versions remove what they announce.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pyvmm.errors import HostError  # noqa: E402 - found by the line above
from pyvmm.host.parts.tools import Tool, through_loader, tree  # noqa: E402 - likewise
from pyvmm.host.progress import Progress  # noqa: E402 - likewise

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
SUITES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky", "3.15": "sid"}
WORK = ROOT / "build/pythons"
UNIT = "not kvm and not e2e and not matrix"
WHICH = "import platform, sys; print('%d.%d' % sys.version_info[:2], platform.python_version())"
WITH_PIP = f"import ensurepip, ssl; {WHICH}"  # Debian's python3 alone cannot make an environment
LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Python:
    """A Python that can make an environment: its command, full version and origin."""

    tool: Tool
    full: str
    origin: str
    pip: Path | None = None  # pip's wheel, for a Python that brings no pip


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one version; ``reason`` says why there are no counts."""

    version: str
    origin: str = "-"
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reason: str = ""
    failures: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether tests ran, and none failed."""
        return not self.reason and not self.failed and self.passed > 0


class Unavailable(Exception):
    """A version that cannot be found, or gets no environment; the message says why."""


def main() -> int:
    """Test each version in turn and show the table; return 1 if one failed."""
    parser = argparse.ArgumentParser(description="Run the unit tests on several Pythons.")
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--debian", action="store_true", help="take each version from Debian")
    parser.add_argument("--into", type=Path, default=WORK, metavar="DIRECTORY")
    arguments = parser.parse_args()
    work = arguments.into.absolute()
    work.mkdir(parents=True, exist_ok=True)
    results = []
    for version in arguments.versions:
        try:
            results.append(check(version, work, debian_only=arguments.debian))
        except Unavailable as error:
            results.append(Result(version, reason=str(error)))
    show(results)
    return 0 if all(result.good for result in results) else 1


def check(version: str, work: Path, *, debian_only: bool) -> Result:
    """Run the unit tests on one version, with its files in the directory ``work``."""
    python = None if debian_only else find(version)
    python = python or from_debian(version)
    venv = work / version
    make_environment(venv, python)
    return run_tests(venv, python)


def find(version: str) -> Python | None:
    """Return an installed Python of that version that can make an environment.

    A pyenv shim may lead to no Python.
    """
    for path, origin in candidates(version):
        try:
            said = subprocess.run(
                [path, "-c", WITH_PIP], capture_output=True, text=True, timeout=60
            ).stdout.split()
        except (OSError, subprocess.TimeoutExpired):
            continue
        if said[:1] == [version]:
            return Python(Tool((str(path),)), said[1], origin)
    return None


def candidates(version: str) -> Iterator[tuple[Path, str]]:
    """Return every place where a Python of that version may be installed."""
    for directory in os.get_exec_path():
        for name in (f"python{version}", "python3"):
            path = Path(directory, name)
            if path.is_file():
                yield path, "PATH"
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    share = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or share / "uv/python")
    for origin, found in (
        ("pyenv", pyenv.glob(f"versions/{version}.*")),
        ("uv", uv.glob(f"cpython-{version}.*")),
    ):
        for installed in sorted(found, reverse=True):
            yield installed / f"bin/python{version}", origin


def from_debian(version: str) -> Python:
    """Unpack a Python and its pip from the Debian suite that has them.

    Raises: Unavailable, with a remedy.
    """
    remedy = f"install it: uv python install {version}, or pyenv install {version}"
    suite = SUITES.get(version)
    if suite is None:
        raise Unavailable(f"not installed, and no Debian suite has it; {remedy}")
    if platform.machine() == "aarch64":
        raise Unavailable(f"not installed, and the KVM extension needs its headers; {remedy}")
    packages = [f"python{version}", "python3-pip-whl"]
    try:
        root = tree(f"python{version}-pip", suite, packages, Progress())
        tool = Tool(through_loader(root, f"usr/bin/python{version}"))
        full = tool.run(["-c", WHICH]).split()[1]
    except HostError as error:
        why = f"not installed, and not to be had from Debian {suite}: {error}"
        raise Unavailable(f"{why}; {remedy}") from None
    wheel = next(root.glob("usr/share/python-wheels/pip-*.whl"))
    return Python(tool, full, f"Debian {suite}", wheel)


def make_environment(venv: Path, python: Python) -> None:
    """Make a virtual environment for pyvmm's tests; reuse one that fits."""
    stamp = venv / ".ready"
    made_of = f"{python.full} {shlex.join(python.tool.command)}\n"
    project = (ROOT / "pyproject.toml").stat().st_mtime
    if stamp.exists() and stamp.read_text() == made_of and stamp.stat().st_mtime > project:
        return
    print(f"Python {python.full} ({python.origin}): making {venv} ...", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    pip = _make_bare(venv, python)
    _run([*pip, "install", "-q", "-e", f"{ROOT}[dev]"], f"pip in {venv}")
    stamp.write_text(made_of)


def _make_bare(venv: Path, python: Python) -> list[str]:
    """Make an empty environment, and return the command that runs its pip."""
    own = str(venv / "bin/python")
    if python.pip is None:
        _run([*python.tool.command, "-m", "venv", str(venv)], f"venv of Python {python.full}")
        return [own, "-m", "pip"]
    command = [*python.tool.command, "-m", "venv", "--without-pip", str(venv)]
    _run(command, f"venv of Python {python.full}")
    _write_launcher(venv / "bin", python.tool)
    return [own, str(python.pip / "pip")]


def _write_launcher(directory: Path, tool: Tool) -> None:
    """Write an environment's python: it runs an unpacked Python with the unpacked C library.

    --argv0 passes the name it was called by, from which Python finds its environment.
    """
    loader, *rest = tool.command
    for link in directory.glob("python*"):
        link.unlink()
    launcher = directory / "python"
    words = f'{shlex.quote(loader)} --argv0 "$0" {shlex.join(rest)}'
    launcher.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    launcher.chmod(0o755)
    (directory / "python3").symlink_to("python")


def _run(command: list[str], what: str) -> None:
    """Run a step of the set-up; its last lines are the reason when it fails."""
    done = subprocess.run(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        lines = "\n".join(done.stdout.splitlines()[-LAST_LINES:])
        raise Unavailable(f"{what} failed:\n{lines}")


def _environment() -> dict[str, str]:
    """Return this process's environment without variables that mix Pythons."""
    others = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "PYVMM_DEBUG"}
    own = {name: value for name, value in os.environ.items() if name not in others}
    return own | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run_tests(venv: Path, python: Python) -> Result:
    """Run the unit suite, with warnings as errors from Python's first line on."""
    log, junit = (venv.with_name(f"{venv.name}.{ending}") for ending in ("log", "xml"))
    junit.unlink(missing_ok=True)
    print(f"Python {python.full} ({python.origin}): testing, log {log} ...", flush=True)
    command = [str(venv / "bin/python"), "-W", "error", "-m", "pytest", "-m", UNIT]
    started = time.monotonic()
    with log.open("w") as output:
        code = subprocess.run(
            [*command, f"--junit-xml={junit}"],
            cwd=ROOT, env=_environment(), stdout=output, stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip
    seconds = time.monotonic() - started
    try:
        if code in (0, 1):
            return count(junit, python, seconds)
        reason = f"pytest ended with {code}"
    except (OSError, ElementTree.ParseError) as error:  # a full disk cuts the file short
        reason = f"pytest ended with {code}, its results cannot be read: {junit}: {error}"
    lines = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    return Result(python.full, python.origin, reason=f"{reason}:\n{lines}")


def count(junit: Path, python: Python, seconds: float) -> Result:
    """Read pytest's JUnit file; an error in a fixture counts as a failure of its test."""
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            outcomes[name] = "failed"
        else:  # a test may occur twice: its call, and a failed teardown
            outcomes.setdefault(name, "skipped" if "skipped" in kinds else "passed")
    of_all = list(outcomes.values())
    return Result(
        version=python.full,
        origin=python.origin,
        passed=of_all.count("passed"),
        failed=of_all.count("failed"),
        skipped=of_all.count("skipped"),
        seconds=seconds,
        failures=[name for name, outcome in outcomes.items() if outcome == "failed"],
    )


def show(results: list[Result]) -> None:
    """Print the table, and below it the failed tests by name."""
    row = "{:<9} {:<16} {:>7} {:>7} {:>8} {:>8}"
    print("\n" + row.format("Python", "from", "passed", "failed", "skipped", "seconds"))
    for r in results:
        counts = (r.passed, r.failed, r.skipped, f"{r.seconds:.0f}")
        print(row.format(r.version, r.origin, *(("-",) * 4 if r.reason else counts)))
    for r in results:
        if r.reason:
            print(f"\nPython {r.version}: {r.reason}")
        for name in r.failures:
            print(f"\nPython {r.version}: failed: {name}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
