"""Fixtures of the emulated host's unit tests: private directories, and the command channel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.host.parts import trees
from pyvmm.host.parts.debian import Package
from pyvmm.host.running import Running
from pyvmm.host.settings import QEMU, Product

ROOT = Path(__file__).resolve().parents[2]
ENOUGH_S = 120.0  # for anything that should happen at all


def wait_for(condition: Any, what: str = "it") -> None:
    """Wait until a condition comes true."""
    deadline = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not happen"
        time.sleep(0.01)


def python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start an interpreter that runs some code; its output is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, **options
    )


@pytest.fixture(autouse=True)
def own_directories(own: Path) -> None:
    """Give each test its own directories."""


def add_tree(product: Product, package: str, suite: str, version: str = "") -> Path:
    """Put a tree of a Debian package's version into the cache."""
    path = trees.place(product, package, suite)
    path.mkdir()
    name = trees.QEMU_PACKAGE if product is QEMU else "linux-image-x-arm64"
    (path / trees.PACKAGES).write_text(f"libc6:arm64=2.36-9\n{name}:arm64={package}\n")
    if version:
        (path / trees.VERSION_FILE).write_text(f"{version}\n")
    return path


def list_packages(packages: Iterable[Package], tree: Path) -> None:
    """Write the list that Suite.unpack() leaves in a tree."""
    (tree / trees.PACKAGES).write_text("".join(f"{package.spec}\n" for package in packages))


class Channel:
    """Both halves of the command channel on this machine, for commands of this user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        facts = {"qemu": "none", "settings": {"cpu": "any"}}
        self.running = Running(directory, "start", 0, facts)
        self._agent = subprocess.Popen(
            [sys.executable, "-m", "tests.host.agent", str(directory)], cwd=ROOT
        )
        wait_for((directory / "ready").exists, "the agent's start")

    def command(self, *argv: str) -> list[str]:
        """Return the client as a command line."""
        # Not by PYTHONPATH or the current directory: those belong to what is tested.
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tests.host.client as client"
        run = f"{code}; sys.exit(client.main())"
        return [sys.executable, "-c", run, str(self.directory), *argv]

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a command through the channel, to its end."""
        options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
        return subprocess.run(self.command(*argv), capture_output=True, timeout=ENOUGH_S, **options)

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command through the channel; its output is a pipe."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        return subprocess.Popen(self.command(*argv), **{**streams, **options})

    def end(self) -> None:
        """End the agent; commands it serves end when their clients do."""
        self._agent.kill()
        self._agent.wait()


@pytest.fixture(scope="session")
def channel() -> Iterator[Channel]:
    """Make the command channel."""
    directory = Path(tempfile.mkdtemp(prefix="pyvmm-test-"))  # short: sockets have short paths
    made = Channel(directory)
    yield made
    made.end()
    shutil.rmtree(directory)
