"""The moment of a save: no instruction of the guest runs between it and the guest's end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.config import Config
from pyvmm.control.server import Peer
from pyvmm.control.service import Service
from pyvmm.errors import UsageError
from pyvmm.kvm import regs
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from pyvmm.snapshot.snapshot import Snapshot
from tests import programs

pytestmark = pytest.mark.kvm

COUNTER = regs.X(1)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Run a guest that counts in a register."""
    image = programs.write("count", tmp_path)
    with Machine(Config(image=image, vcpus=1, memory=16 * MIB), lambda _: None) as made:
        made.start()
        wait_until_counts(made)
        yield made


def counted(machine: Machine) -> int:
    """Return how far the guest has counted; it is paused or has ended."""
    return machine.vcpus[0].get_one_reg(COUNTER)


def wait_until_counts(machine: Machine, above: int = 0) -> None:
    deadline = time.monotonic() + 120
    while True:
        with machine.paused():
            if counted(machine) > above:
                return
        assert time.monotonic() < deadline, "the guest stands still"
        time.sleep(0.01)  # a guest that is paused again at once never runs


def save(machine: Machine, file: Path, **more: Any) -> Peer:
    """Save the guest by a request of a client; return the client."""
    unused: Any = None
    peer = Peer()
    peer.fds.append(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    service = Service(lambda: machine, unused, 0.0)
    service.save({"file": str(file), "peer": peer, **more})
    return peer


def test_guest_that_is_saved_and_ends_runs_nothing_after_the_save(
    machine: Machine, tmp_path: Path
) -> None:
    save(machine, tmp_path / "guest.snap")

    machine.stop()

    with Snapshot(tmp_path / "guest.snap", trust=True) as saved:
        assert counted(machine) == saved.vcpus[0].get_one_reg(COUNTER)


def test_saved_guest_continues_when_its_client_asks_for_that(
    machine: Machine, tmp_path: Path
) -> None:
    save(machine, tmp_path / "guest.snap", resume=True)

    assert not machine.is_paused
    with Snapshot(tmp_path / "guest.snap", trust=True) as saved:
        wait_until_counts(machine, above=saved.vcpus[0].get_one_reg(COUNTER))


def test_saved_guest_continues_when_its_client_goes(machine: Machine, tmp_path: Path) -> None:
    peer = save(machine, tmp_path / "guest.snap")
    assert machine.is_paused

    assert peer.on_close is not None
    peer.on_close()

    assert not machine.is_paused


def test_guest_continues_after_a_save_that_fails(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="descriptors"):
        save(machine, tmp_path / "guest.snap", parents=["a", "b"])
    with pytest.raises(UsageError, match="/dev/full"):
        save(machine, Path("/dev/full"))

    with machine.paused():
        before = counted(machine)
    wait_until_counts(machine, above=before)


def test_paused_guest_stays_paused(machine: Machine, tmp_path: Path) -> None:
    machine.pause()

    peer = save(machine, tmp_path / "guest.snap")

    assert machine.is_paused
    assert peer.on_close is not None
    peer.on_close()
    assert machine.is_paused
