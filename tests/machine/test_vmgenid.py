"""The VM generation ID: new after each restore, with an interrupt."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.machine.machine import Machine
from pyvmm.machine.vmgenid import SPI
from pyvmm.snapshot.gic import DIST, FIRST_SPI, gic_registers, values_of
from pyvmm.snapshot.restorer import restore
from pyvmm.snapshot.save import save
from tests.machine.conftest import Boot

pytestmark = pytest.mark.kvm

INTID = FIRST_SPI + SPI
BIT = 1 << INTID % 32
ISENABLER = 0x100 + INTID // 32 * 4
ISPENDR = 0x200 + INTID // 32 * 4
ICFGR = 0xC00 + INTID // 16 * 4
EDGE = 2 << INTID % 16 * 2
ALL_EDGES = 0xAAAA_AAAA


def value(machine: Machine) -> bytes:
    """Return what the guest reads."""
    assert machine.board.vmgenid is not None
    memory = machine.board.slots.saved[layout.VMGENID.name]
    found = memory.read(layout.VMGENID.base, layout.VMGENID_SIZE)
    assert found == machine.board.vmgenid.value
    return found


def is_pending(machine: Machine) -> bool:
    found = values_of(gic_registers(machine.board).read(DIST, None, [ISPENDR]))
    return bool(found[ISPENDR] & BIT)


def test_value_is_new_after_each_restore(boot: Boot, tmp_path: Path) -> None:
    machine = boot("wait")
    save(machine, tmp_path / "snap")
    values = [value(machine)]
    for _ in range(3):
        with restore(tmp_path / "snap", lambda data: None) as again:
            values.append(value(again))

    assert len(set(values)) == 4
    assert all(len(set(found)) > 1 for found in values)


@pytest.mark.parametrize(
    "setup", [{ISENABLER: BIT, ICFGR: ALL_EDGES}, {ICFGR: EDGE}], ids=["enabled", "masked"]
)
def test_restore_interrupts_a_guest_that_has_a_driver(
    boot: Boot, tmp_path: Path, setup: dict[int, int]
) -> None:
    """A suspended Linux has masked its interrupts, and takes those that are pending later."""
    machine = boot("wait")
    gic_registers(machine.board).write(DIST, None, setup)
    save(machine, tmp_path / "snap")
    assert not is_pending(machine)

    with restore(tmp_path / "snap", lambda data: None) as again:
        assert is_pending(again)


def test_restore_leaves_nothing_pending_in_a_guest_without_a_driver(
    boot: Boot, tmp_path: Path
) -> None:
    save(boot("wait"), tmp_path / "snap")

    with restore(tmp_path / "snap", lambda data: None) as again:
        assert not is_pending(again)


def test_restore_leaves_nothing_pending_in_a_linux_without_a_driver(
    boot: Boot, tmp_path: Path
) -> None:
    machine = boot("wait")
    gic_registers(machine.board).write(DIST, None, {ICFGR: 0})
    save(machine, tmp_path / "snap")

    with restore(tmp_path / "snap", lambda data: None) as again:
        assert not is_pending(again)


def test_machine_without_one_is_restored_without_one(boot: Boot, tmp_path: Path) -> None:
    machine = boot("wait", vmgenid=False)
    assert layout.VMGENID.name not in machine.board.slots.saved
    save(machine, tmp_path / "snap")

    with restore(tmp_path / "snap", lambda data: None) as again:
        assert again.board.vmgenid is None
        assert layout.VMGENID.name not in again.board.slots.saved
