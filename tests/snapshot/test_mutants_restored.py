"""Mutated states with right hashes, restored on KVM by the confined command, and run.

The machine has a PMU, each kind of interrupt controller, and all devices in use by a driver.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pyvmm import cli
from pyvmm.base.output import LONGEST
from pyvmm.config import Config, CpuRequest, Pmem
from pyvmm.errors import HostError
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.machine.machine import Machine
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.gic import PARTS
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.save import save
from pyvmm.snapshot.writer import MemoryToSave, write_snapshot
from tests import programs
from tests.devices import live
from tests.sandbox.escape import in_child
from tests.snapshot.mutations import leaves, mutate
from tests.snapshot.test_mutants import places, watched

pytestmark = pytest.mark.kvm

SHORT, LONG = 6, 200
MATRIX = [pytest.mark.matrix, pytest.mark.timeout(3600)]
TIMED_OUT = 124  # of --timeout: the guest's only program never ends
CODES = {0, 1, 2, 3, TIMED_OUT}
RUN_S = "0.1"
IN_TIME = f"pyvmm: the guest did not end within {RUN_S} s"
EVERY = 5  # of these mutants one names another's file
DRIVER = ("status", "driver_features", "queues")  # what a driver has set
DRIVEN = 64 << 10  # the bytes of RAM that the driver's rings are in


@pytest.fixture
def honest(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the state of a machine with that interrupt controller, and its driver's rings."""
    disk, pmem = tmp_path / "in/disk", tmp_path / "in/pmem"
    disk.parent.mkdir()
    for path in (disk, pmem):
        path.write_bytes(bytes(live.SIZE))
    devices = (*live.configs(disk)[:-1], Pmem(path=pmem))
    config = Config(
        image=programs.write("spin", tmp_path), vcpus=2, memory=live.RAM_SIZE, console="virtio",
        cpu=CpuRequest(pmu=True), irqchip=request.param, devices=devices,
    )  # fmt: skip
    try:
        with Machine(config, lambda data: None) as vm:
            save(vm, tmp_path / "honest.snap")
    except HostError as error:
        if "irqchip" not in error.message:
            raise
        pytest.skip(error.message)
    with SnapshotFile.open(tmp_path / "honest.snap") as file:
        document = json.loads(json.dumps(file.document))
    with live.LiveDevices(disk) as made:
        made.use()
        for name, state in made.states().items():
            if name.startswith("virtio"):
                document["devices"][name]["virtio"] |= {key: state["virtio"][key] for key in DRIVER}
        rings = made.ram.read(RAM_BASE, DRIVEN)
    return document, rings


def restored(path: Path) -> list[Any]:
    """Restore a snapshot in a process of its own; return the exit code and what pyvmm said."""

    def work() -> list[Any]:
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as printed:
            for fd, file in ((1, printed), (2, said)):
                os.dup2(file.fileno(), fd)
            sys.stdout, sys.stderr = printed, said
            code = cli.main(["restore", str(path), "--timeout", RUN_S], owns_process=True)
            said.flush()
            said.seek(0)
            return [code, said.read()]

    found: list[Any] = in_child(work)
    return found


@pytest.mark.parametrize(
    ("honest", "count"),
    [
        pytest.param("gicv3-its", SHORT, marks=pytest.mark.timeout(300)),
        *(pytest.param(kind, LONG, marks=MATRIX) for kind in PARTS),
    ],
    indirect=["honest"],
)
def test_restore_runs_or_refuses_any_mutated_state(
    honest: tuple[dict[str, Any], bytes], count: int, tmp_path: Path, own: Path
) -> None:
    document, rings = honest
    path, secret = tmp_path / "in/bad.snap", tmp_path / "home/secret"
    secret.parent.mkdir()
    secret.write_bytes(bytes(live.SIZE))
    where, rng, codes = places(document), random.Random(16), set[int]()

    with GuestMemory(RAM_BASE, MIB) as memory, watched(secret.parent) as events:
        memory.write(RAM_BASE, rings)
        parts = [MemoryToSave(memory)]
        write_snapshot(path, document, parts)
        code, said = restored(path)
        assert (code, said.splitlines()[-1]) == (TIMED_OUT, IN_TIME), said
        for number in range(count):
            mutant = mutate(rng, document, where)
            if number % EVERY == 0:
                name(rng, mutant, secret)
            write_snapshot(path, mutant, parts)
            code, said = restored(path)
            assert code in CODES and "unexpected" not in said, (number, said)
            assert said.replace("\n", "").isprintable(), (number, said)
            assert max(map(len, said.splitlines())) <= LONGEST + 100
            assert not events(), number
            codes.add(code)
        secret.read_bytes()
        assert events()  # the watch works

    assert codes & {1, 2, 3}


def name(rng: random.Random, document: dict[str, Any], secret: Path) -> None:
    """Have one of a state's files be another's."""
    found = [way for way in leaves(document) if way[-1] == "path"]
    if not found:
        return
    *way, last = rng.choice(found)
    above: Any = document
    for key in way:
        above = above[key]
    above[last] = str(secret)
