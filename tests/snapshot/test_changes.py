"""Incremental snapshots of machines: they store changed pages and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.errors import UsageError
from pyvmm.layout import MIB
from pyvmm.machine.dirty import DirtyPages
from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range, without
from pyvmm.snapshot import save as saving
from pyvmm.snapshot.format import PAGE
from pyvmm.snapshot.pages import changed
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.save import save
from tests.snapshot import machines
from tests.snapshot.test_machine import contents, find_pages

pytestmark = pytest.mark.kvm

FREE = 8 * MIB  # an offset in RAM that the guest does not use


@pytest.fixture(params=["noted by KVM", "compared"])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[machines.Guest]:
    """Run a guest after it was saved."""
    with machines.boot() as guest:
        base = guest.machine.memory.base
        guest.machine.memory.write(base + FREE + 0x5000, b"will be zero")
        guest.run_rounds(1)
        save(guest.machine, tmp_path / "base.snap", track=request.param == "noted by KVM")
        guest.run_rounds(2)
        yield guest


def test_incremental_snapshot_equals_a_full_one(guest: machines.Guest, tmp_path: Path) -> None:
    vm, base = guest.machine, guest.machine.memory.base
    vm.memory.write(base + FREE, b"by pyvmm, not by the guest")
    vm.memory.zero(base + FREE + 0x5000, 0x1000)
    with vm.paused():
        save(vm, tmp_path / "more.snap", parent=tmp_path / "base.snap")
        save(vm, tmp_path / "full.snap")
    guest.run_rounds(1)
    with vm.paused():
        save(vm, tmp_path / "third.snap", parent=tmp_path / "more.snap")
        save(vm, tmp_path / "full3.snap")

    for child, full in (("more", "full"), ("third", "full3")):
        with (
            SnapshotFile.open(tmp_path / f"{child}.snap") as part,
            SnapshotFile.open(tmp_path / f"{full}.snap") as whole,
        ):
            for low, data in contents(whole):
                assert part.read(low, len(data)) == data
            held = part.read(base + FREE + 0x5000, 0x1000)
            assert held == bytes(0x1000)
            assert part.header.memory.length < whole.header.memory.length


def test_guest_runs_after_restore_of_a_chain(guest: machines.Guest, tmp_path: Path) -> None:
    save(guest.machine, tmp_path / "more.snap", parent=tmp_path / "base.snap")

    with machines.restored(tmp_path / "more.snap") as other:
        other.machine.start()
        other.run_rounds(2)
        save(other.machine, tmp_path / "third.snap", parent=tmp_path / "more.snap")
    with machines.restored(tmp_path / "third.snap") as other:
        other.machine.start()
        other.run_rounds(2)
        assert other.finish() == 0, other.text


def test_guest_detects_a_lost_dirty_page(
    guest: machines.Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram = guest.machine.memory

    def lose(memory: GuestMemory, parent: SnapshotFile, dirty: DirtyPages) -> list[Range]:
        ranges = changed(memory, parent, dirty)
        if memory is not ram:
            return ranges
        page = ram.base + find_pages(ram.read(ram.base, ram.size), latest=True)
        left = without(ranges, [(page, page + PAGE)])
        assert left != ranges
        return left

    monkeypatch.setattr(saving, "changed", lose)
    save(guest.machine, tmp_path / "more.snap", parent=tmp_path / "base.snap")

    with machines.restored(tmp_path / "more.snap") as other:
        other.machine.start()
        other.wait_for(r"page [0-9]+ has [0-9]+, not [0-9]+")


def test_save_refuses_a_parent_of_another_machine(guest: machines.Guest, tmp_path: Path) -> None:
    with (
        machines.boot(memory=32 * MIB) as other,
        pytest.raises(UsageError, match=r"base.snap: this snapshot's machine has other memory"),
    ):
        save(other.machine, tmp_path / "x.snap", parent=tmp_path / "base.snap")
    assert not (tmp_path / "x.snap").exists()
