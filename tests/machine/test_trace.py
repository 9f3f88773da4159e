"""The trace of a run: a file that cannot be written is named, and an old one stays."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason
from pyvmm.machine import trace
from pyvmm.machine.trace import ExitTrace

LEAVE = Exit(ExitReason.INTR)
REFUSAL = r"run\.pftrace: cannot be written: File too large"


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow in the block."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make the trace of an earlier run."""
    path = tmp_path / "run.pftrace"
    path.write_bytes(b"old")
    return path


def check_old_one_is_alone(path: Path) -> None:
    assert path.read_bytes() == b"old"
    assert [*path.parent.iterdir()] == [path]


def test_trace_names_its_file_when_the_disk_is_full_at_the_end(path: Path) -> None:
    with pytest.raises(HostError, match=REFUSAL), ExitTrace(path, "one") as made, full_disk():
        made.exit(0, "INTR", LEAVE, 0)
        made.close()

    check_old_one_is_alone(path)


def test_trace_names_its_file_when_the_disk_is_full_during_the_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "FLUSH", 0)

    with pytest.raises(HostError, match=REFUSAL), ExitTrace(path, "one") as made, full_disk():
        with pytest.raises(HostError, match=REFUSAL):
            made.exit(0, "INTR", LEAVE, 0)
        with pytest.raises(HostError, match=REFUSAL):
            made.exit(1, "INTR", LEAVE, 0)  # another vCPU

    check_old_one_is_alone(path)


def test_trace_names_its_file_when_the_disk_is_full_at_the_start(path: Path) -> None:
    with full_disk(), pytest.raises(HostError, match=REFUSAL):
        ExitTrace(path, "one")

    check_old_one_is_alone(path)


def test_trace_replaces_an_old_one_at_its_end(path: Path) -> None:
    with ExitTrace(path, "one") as made:
        made.exit(0, "INTR", LEAVE, 0)
        assert path.read_bytes() == b"old"

    made.close()

    assert b"INTR" in path.read_bytes()
