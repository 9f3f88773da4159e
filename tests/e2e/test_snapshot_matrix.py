"""Save and restore again and again, each in a new process, on every kernel: all is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import FIRST_S, Pyvmm

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.matrix,
    pytest.mark.timeout(3600),
    pytest.mark.usefixtures("emulated"),
]

CYCLES = int(os.environ.get("PYVMM_TEST_CYCLES", "100"))
LENGTHS = {128: "128", 256: "128,256", 512: "128,256,512", 1024: "128,256,512,1024",
           2048: "128,256,512,1024,2048"}  # fmt: skip
TIMED_OUT = 124


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
@pytest.mark.parametrize("longest", LENGTHS)
def test_sve_guest_survives_saves_and_restores(
    pyvmm: Pyvmm, tmp_path: Path, kernel: str, longest: int
) -> None:
    host = ["--host-kernel", kernel]
    file = tmp_path / "guest.snap"
    span = ["--timeout", "1", "--save-on-exit", str(file)]
    machine = ["-c", "3", "-m", "16", f"--sve-vls={LENGTHS[longest]}", "-p", "patience=30"]
    begun = pyvmm("run", *host, *machine, *span, "sve-snapshot", timeout=FIRST_S)
    assert begun.returncode == TIMED_OUT, begun.stderr

    for cycle in range(CYCLES):
        done = pyvmm("restore", *host, *span, str(file))
        assert (done.returncode, done.stdout) == (TIMED_OUT, ""), (cycle, done.stdout, done.stderr)
    last = pyvmm("restore", *host, str(file), input="cssssq")

    assert last.returncode == 0, last.stdout
    assert "failures=0" in last.stdout
    assert f" vl={longest}\n" in last.stdout
