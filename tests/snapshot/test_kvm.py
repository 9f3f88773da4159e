"""Snapshot files on the file systems of an emulated host: the share, and tmpfs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot import pages, restoreorder
from pyvmm.snapshot.compare import compare
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.save import save as save_machine
from pyvmm.snapshot.snapshot import Snapshot
from tests.snapshot import machines
from tests.snapshot.files import BASE, FILLERS, SIZE, restored, save, write_scene

pytestmark = pytest.mark.kvm


@pytest.fixture(params=["share", "tmpfs"])
def directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return a directory on each: the working directory is the user's, TMPDIR the host's."""
    where = Path.cwd() if request.param == "share" else None
    with tempfile.TemporaryDirectory(dir=where, prefix=".test-snapshot-") as name:
        yield Path(name)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(BASE, SIZE) as memory:
        write_scene(memory)
        yield memory


@pytest.mark.parametrize("how", FILLERS)
def test_restore_returns_the_saved_memory_on_share_and_tmpfs(
    directory: Path, memory: GuestMemory, how: str
) -> None:
    save(directory / "guest.snap", memory)

    assert restored(directory / "guest.snap", how) == memory.read(BASE, SIZE)


def test_lazy_memory_stays_after_the_file_was_replaced(
    directory: Path, memory: GuestMemory
) -> None:
    path = directory / "guest.snap"
    save(path, memory)

    with GuestMemory(BASE, SIZE) as back:
        with SnapshotFile.open(path) as snapshot:
            FILLERS["lazy"](snapshot, [back])
        save(path, back)  # replaces the mapped file
        assert back.read(BASE, SIZE) == memory.read(BASE, SIZE)
    assert restored(path) == memory.read(BASE, SIZE)


def test_save_removes_the_temporary_file_of_a_killed_save(
    directory: Path, memory: GuestMemory
) -> None:
    left = directory / ".guest.snap.01234567.tmp"
    left.write_bytes(b"half")

    save(directory / "guest.snap", memory)

    assert os.listdir(directory) == ["guest.snap"]  # noqa: PTH208 - names


def test_pagemap_reports_touched_memory() -> None:
    with GuestMemory(BASE, 32 * BLOCK) as memory:
        memory.write(BASE + 8 * BLOCK, b"x")

        ((low, high),) = pages.touched(memory)

        assert low <= BASE + 8 * BLOCK < high
        assert high - low <= BLOCK
        assert pages.used(memory, [(low, high)]) == [(BASE + 8 * BLOCK, BASE + 8 * BLOCK + PAGE)]


def test_snapshot_has_the_registers_and_memory_of_the_machine(tmp_path: Path) -> None:
    first, second = tmp_path / "first.snap", tmp_path / "second.snap"
    with machines.boot(frozenset({128, 256})) as guest:
        guest.run_rounds()
        machine = guest.machine
        machine.pause()
        save_machine(machine, first)
        save_machine(machine, second)
        with Snapshot(first) as a, Snapshot(second) as b:
            for saved, live in zip(a.vcpus, machine.vcpus, strict=True):
                there = {row.id: row.value for row in live.registers()}
                shown = {row.id: row.value for row in saved.registers()}
                assert there.keys() == shown.keys()
                changed = {reg_id for reg_id in there if there[reg_id] != shown[reg_id]}
                assert all(restoreorder.class_of(reg_id).ticks for reg_id in changed)
                assert saved.z[3] == live.z[3]
                assert saved.vl_in_use == live.vl_in_use
            ram = machine.memory
            assert a.read(ram.base, ram.size) == ram.read(ram.base, ram.size)
            assert not compare(a, b).differ
        machine.resume()
        guest.run_rounds()
        machine.pause()
        save_machine(machine, second)
        with Snapshot(first) as a, Snapshot(second) as b:
            found = compare(a, b)
            assert found.differ
            assert {change.where for change in found.changes} >= {"vCPU 0", "vCPU 1"}
            assert found.memory  # counts of rounds
        machine.resume()
        assert guest.finish() == 0, guest.text
