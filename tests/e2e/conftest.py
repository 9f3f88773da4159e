"""The pyvmm command as a user types it, with emulated hosts of the tests' own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.host import HostSettings, is_local
from tests.runtime import own_runtime_dir

ENOUGH_S = 120.0  # a deadline for any event in a host that runs
FIRST_S = 600.0  # a deadline for a command that may have to make a host

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="package", autouse=True)
def own_runtime_directory() -> Iterator[None]:
    """Use a runtime directory of these tests alone, because they kill hosts."""
    with own_runtime_dir("e2e"):
        yield


class Pyvmm:
    """The pyvmm command; every call is a process of its own."""

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def __call__(self, *arguments: str, **options: Any) -> Done:
        """Run the command to its end; the output is text."""
        options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
        options.setdefault("timeout", ENOUGH_S)
        return subprocess.run(
            [*self.command, *arguments], text=True, **{"capture_output": True, **options}
        )

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start the command with pipes for its output."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        return subprocess.Popen([*self.command, *arguments], **{**streams, **options})

    def hosts(self) -> list[dict[str, Any]]:
        """Return the running hosts, as `host status --json` lists them."""
        document = json.loads(self("host", "status", "--json").stdout)
        return [host for host in document["hosts"] if host["running"]]


@pytest.fixture(scope="session")
def pyvmm(pyvmm_cmd: list[str]) -> Pyvmm:
    """Return the command under test."""
    return Pyvmm(pyvmm_cmd)


@pytest.fixture(scope="package")
def emulated(own_runtime_directory: None, pyvmm: Pyvmm) -> None:
    """Start the default emulated host; skip on a machine that runs guests itself."""
    if is_local(HostSettings()):
        pytest.skip("commands run on this machine's own KVM")
    done = pyvmm("host", "start", timeout=FIRST_S)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def nested(pyvmm: Pyvmm) -> Iterator[tuple[str, ...]]:
    """Return the options of a host with guests at EL2.

    It ends with the module's tests: others expect the default host alone.
    """
    if is_local(HostSettings()):
        pytest.skip("commands run on this machine's own KVM")
    options = ("--host-model", "nested")
    started = pyvmm("host", "start", *options, timeout=FIRST_S)
    assert started.returncode == 0, started.stderr
    yield options
    pyvmm("host", "stop", *options)


@pytest.fixture(scope="package")
def at_rest(emulated: None, pyvmm: Pyvmm) -> list[str]:
    """Return the processes of an idle host."""
    return processes(pyvmm)


@pytest.fixture
def nothing_left(at_rest: list[str], pyvmm: Pyvmm) -> Iterator[None]:
    """Check after the test that the host runs no command and only its initial processes."""
    yield
    deadline = time.monotonic() + 120
    while (left := processes(pyvmm)) != at_rest:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)


def processes(pyvmm: Pyvmm) -> list[str]:
    """Return the processes of the default host, without its kernel threads."""
    lines = pyvmm("host", "exec", "--", "ps", "-o", "args").stdout.splitlines()
    return sorted(line for line in lines if not line.startswith("["))


def message(done: Done) -> str:
    """Return stderr, after a check that it is one message, perhaps a hint, and no traceback."""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("pyvmm: "), done.stderr
    assert all(line.startswith("  hint: ") for line in rest), done.stderr
    assert len(rest) <= 1, done.stderr
    assert done.stdout == ""
    return done.stderr


def wait_for(condition: Any, what: str) -> None:
    """Wait until a condition comes true."""
    deadline = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not happen"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
