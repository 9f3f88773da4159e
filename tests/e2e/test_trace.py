"""``pyvmm run --trace``: a trace of a real run, read by Perfetto's definitions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm import layout
from tests.report.test_perfetto import slices

# The first command may have to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_trace_holds_every_exit_that_stat_counts(pyvmm_cmd: list[str], tmp_path: Path) -> None:
    path = tmp_path / "hello.pftrace"
    options = ["--no-fast-mmio", "--trace", str(path), "-c", "1"]

    done = subprocess.run([*pyvmm_cmd, "run", *options, "hello"], capture_output=True, timeout=280)

    assert done.returncode == 0, done.stderr
    found = slices(path.read_bytes())
    printed = bytes(
        facts["data"] for _, name, _, facts in found
        if name == "uart0 write" and facts["address"] == layout.UART.base
    )  # fmt: skip
    assert done.stdout
    assert printed == done.stdout
    assert {track for track, _, _, _ in found} == {"vCPU 0"}
    assert found[-1][1] == "SYSTEM_EVENT"
    assert all(duration >= 0 for _, _, duration, _ in found)
