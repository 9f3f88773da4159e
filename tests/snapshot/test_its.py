"""Save and restore of an interrupt translation service: tables and pending interrupts."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.config import Config
from pyvmm.kvm.uapi import VgicGroup
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from pyvmm.snapshot.restorer import restore
from pyvmm.snapshot.save import save
from tests import programs

pytestmark = pytest.mark.kvm

# Registers and commands.  Source: Arm IHI 0069, 12.19 (ITS), 12.11 (redistributor) and 5.3
GITS_CTLR, GITS_CBASER, GITS_CWRITER, GITS_CREADR, GITS_BASER = 0x0, 0x80, 0x88, 0x90, 0x100
GITS_TRANSLATER = 0x1_0040
GICR_CTLR, GICR_PROPBASER, GICR_PENDBASER = 0x0, 0x70, 0x78
VALID = 1 << 63
MAPD, MAPC, MAPTI, INV, SYNC = 0x08, 0x09, 0x0A, 0x0C, 0x05
DEVICE, EVENT, LPI, COLLECTION = 5, 2, 8195, 1
PTZ = 1 << 62  # the pending table is zero

TABLES = 4 * MIB  # from the start of RAM
COMMANDS, DEVICES, COLLECTIONS, ITT, CONFIGS, PENDING = (TABLES + n * 0x1_0000 for n in range(6))


def command(*words: int) -> bytes:
    return struct.pack("<4Q", *words, *[0] * (4 - len(words)))


def set_up(vm: Machine) -> None:
    """Map one event of one device to an LPI, as a guest's driver does."""
    base = vm.memory.base
    assert vm.board.irqchip.its is not None
    its, gic = vm.board.irqchip.its.device, vm.board.irqchip.gic.device
    vm.memory.write(base + CONFIGS + LPI - 8192, b"\xa1")  # priority 0xa0, enabled
    for register, value in (
        (GICR_PROPBASER, base + CONFIGS | 15),  # 16 bits of INTIDs
        (GICR_PENDBASER, base + PENDING | PTZ),
    ):
        gic.set_attr(VgicGroup.REDIST_REGS, register, value & 0xFFFF_FFFF)
        gic.set_attr(VgicGroup.REDIST_REGS, register + 4, value >> 32)
    gic.set_attr(VgicGroup.REDIST_REGS, GICR_CTLR, 1)
    for number, table in enumerate((DEVICES, COLLECTIONS)):
        its.set_attr(VgicGroup.ITS_REGS, GITS_BASER + 8 * number, VALID | base + table)
    its.set_attr(VgicGroup.ITS_REGS, GITS_CBASER, VALID | base + COMMANDS)
    its.set_attr(VgicGroup.ITS_REGS, GITS_CTLR, 1)
    queue = b"".join([
        command(MAPC, 0, VALID | COLLECTION),
        command(MAPD | DEVICE << 32, 4, VALID | base + ITT),
        command(MAPTI | DEVICE << 32, EVENT | LPI << 32, COLLECTION),
        command(INV | DEVICE << 32, EVENT),
        command(SYNC),
    ])  # fmt: skip
    vm.memory.write(base + COMMANDS, queue)
    its.set_attr(VgicGroup.ITS_REGS, GITS_CWRITER, len(queue))
    assert its.get_attr(VgicGroup.ITS_REGS, GITS_CREADR) == len(queue)


def signal(vm: Machine, event: int = EVENT) -> bool:
    return vm.board.vm.signal_msi(layout.its(1).base + GITS_TRANSLATER, event, DEVICE)


def pending(vm: Machine) -> bool:
    """Return whether the last save wrote the LPI to the pending table in guest memory."""
    (byte,) = vm.memory.read(vm.memory.base + PENDING + LPI // 8, 1)
    return bool(byte >> LPI % 8 & 1)


def test_its_keeps_mappings_and_pending_interrupts_across_a_restore(tmp_path: Path) -> None:
    config = Config(
        image=programs.write("spin", tmp_path), vcpus=1, memory=16 * MIB, irqchip="gicv3-its"
    )
    with Machine(config, lambda data: None) as vm:
        set_up(vm)
        save(vm, tmp_path / "quiet.snap")
        assert not pending(vm)
        assert signal(vm)
        save(vm, tmp_path / "pending.snap")
        assert pending(vm)

    for name, was_pending in (("quiet", False), ("pending", True)):
        with restore(tmp_path / f"{name}.snap", lambda data: None) as vm:
            assert not pending(vm)  # the kernel has taken it out of the table
            save(vm, tmp_path / "again.snap")
            assert pending(vm) == was_pending  # and has put it back
            assert signal(vm)
            assert not signal(vm, EVENT + 1)
            save(vm, tmp_path / "again.snap")
            assert pending(vm)
