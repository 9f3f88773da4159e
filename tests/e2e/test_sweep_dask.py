"""A sweep on a Dask cluster of two workers, one of which is killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import vls
from tests.e2e.conftest import FIRST_S, Pyvmm, wait_for

pytestmark = [
    pytest.mark.e2e, pytest.mark.timeout(FIRST_S),
    pytest.mark.usefixtures("own_runtime_directory"),
]  # fmt: skip

WORKER = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")


@contextlib.contextmanager
def dask(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a `dask` command, and kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments], stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """Return the address of a scheduler."""
    file = tmp_path / "scheduler.json"
    with dask(
        "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
        "--scheduler-file", str(file),
    ):  # fmt: skip
        wait_for(file.exists, "a scheduler")
        yield json.loads(file.read_text())["address"]


def children(process: int) -> list[int]:
    """Return the children of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += map(int, (task / "children").read_text().split())
    return found


def test_runs_of_a_killed_worker_are_repeated(scheduler: str, pyvmm: Pyvmm, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    arguments = (
        "sweep", "sve-math", "-p", "kernel=matmul", "--sve-vls-each", "all",
        "--host-cpu", vls.SIXTEEN.cpu, "--scheduler", scheduler, "--logs", str(logs), "--json",
    )  # fmt: skip
    pyvmm("host", "start", "--host-cpu", vls.SIXTEEN.cpu, timeout=FIRST_S)

    with (
        dask("worker", scheduler, *WORKER) as one,
        dask("worker", scheduler, *WORKER),
        pyvmm.start(*arguments) as process,
    ):
        wait_for(lambda: logs.is_dir() and len([*logs.iterdir()]) >= 3, "a result")
        wait_for(lambda: children(one.pid), "a run")
        os.kill(one.pid, signal.SIGKILL)
        shown, _ = process.communicate(timeout=FIRST_S)

    runs = json.loads(shown)["runs"]
    assert process.returncode == 0
    assert [tuple(run["set"]) for run in runs] == vls.SIXTEEN.legal
    assert {run["verdict"] for run in runs} == {"passed"}
    assert all(f"matmul at {run['set'][-1]} bits" in run["output"] for run in runs)
    pyvmm("host", "rm", "--host-cpu", vls.SIXTEEN.cpu)
