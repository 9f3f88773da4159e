"""Restore of a machine from a snapshot: the file is checked, then loaded into new hardware."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Final

from pyvmm.base import computer
from pyvmm.base.closing import Closing
from pyvmm.config import Config, DeviceConfig
from pyvmm.errors import HostError, UsageError, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.system import System
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.machine.board import Board, Hooks, assemble
from pyvmm.machine.machine import Machine, write_to_stdout
from pyvmm.machine.plan import Feature
from pyvmm.machine.vmgenid import SPI, UNUSED_SPI
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.check import Compatibility, machine_rows, register_row
from pyvmm.snapshot.gic import sets_up_spi
from pyvmm.snapshot.hostlimits import limits_here
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.restorememory import fill, map_into
from pyvmm.snapshot.restorestate import Loss, RestoreReport, plan_of, restore_state
from pyvmm.snapshot.state import State
from pyvmm.snapshot.tags import tag_memories, write_tags
from pyvmm.snapshot.trust import admitted

NANOSECONDS: Final = 1_000_000_000


class Reading(Enum):
    """A method to read memory from a snapshot's file."""

    LAZY = "lazy"  # mapped and read on first use; checked in the background
    EAGER = "eager"  # read and checked before the guest runs


class ClockPolicy(Enum):
    """The guest's time when it resumes."""

    CONTINUE = "continue"  # the time of the save
    CATCH_UP = "catch-up"  # the time of the save and the host's time since then


class Restorer(Closing):
    """A snapshot's file, and how to restore a machine from it; a context manager.

    ``config`` is the machine's.  ``report`` lists registers that build() could not restore.
    """

    def __init__(
        self,
        path: Path,
        *,
        reading: Reading | None = None,
        clock: ClockPolicy = ClockPolicy.CONTINUE,
        force: bool = False,
        given: Sequence[DeviceConfig] = (),
        trust: bool = False,
    ) -> None:
        """Open the file, and check its state and index.

        ``given`` devices replace the disks and pmem files of the snapshot.  With ``trust`` it may
        name any files: see trust.py.

        Raises: UsageError, if it is damaged or not a snapshot, or may not open what it names.
        """
        self.path = path
        self.reading = reading or default_reading(path)
        self.clock = clock
        self.force = force
        self.report = RestoreReport()
        self._verifier: threading.Thread | None = None
        self._stop = threading.Event()
        self._undo = ExitStack()
        self.file: SnapshotFile
        self.state: State
        self.file, self.state = admitted(path, given, trust=trust)
        self._undo.enter_context(self.file)
        if Feature.MTE in self.state.features:  # KVM refuses the pages of files for its memory
            if reading is Reading.LAZY:
                self._undo.close()
                raise UsageError(
                    f"{path}: the guest has memory tags (MTE): its memory cannot be mapped from a "
                    "file",
                    hint=f"use `reading`={Reading.EAGER.value}",
                )
            self.reading = Reading.EAGER
        self.config = self.state.config

    def close(self) -> None:
        """Stop the check and close the file; idempotent."""
        self._stop.set()
        if self._verifier is not None:
            self._verifier.join()
        self._undo.close()

    def build(self, system: System, config: Config, hooks: Hooks, undo: ExitStack) -> Board:
        """Make the machine as it was saved, except for its counter: see start_clock().

        Raises:
            HostError: this host lacks a part of the machine.
            UsageError: the snapshot is damaged.
        """
        self._refuse_impossible(system)
        board = assemble(system, config, plan_of(self.state), hooks, undo)
        self._fill(board)
        self.report = restore_state(board, self.state, self._may_lose, force=self.force)
        if board.vmgenid is not None:
            board.vmgenid.renew(interrupt=sets_up_spi(self.state.gic, SPI, UNUSED_SPI))
        return board

    def virtual_now(self) -> int:
        """Return the value of the guest's virtual counter when it resumes."""
        clock = self.state.clock
        if self.clock is ClockPolicy.CONTINUE:
            return clock.virtual
        passed_ns = max(0, time.time_ns() - clock.real_ns)
        return (clock.virtual + passed_ns * clock.hz // NANOSECONDS) & (1 << 64) - 1

    def start_clock(self, vcpu: Vcpu) -> None:
        """Set the guest's counters just before it resumes; all vCPUs of a VM share them."""
        now = self.virtual_now()
        vcpu.set_one_reg(regs.TIMER_CNT, now)
        physical = self.state.vcpus[0].registers.get(regs.PTIMER_CNT)
        if physical is not None and regs.PTIMER_CNT in vcpu.get_reg_list():
            passed = now - self.state.clock.virtual
            vcpu.set_one_reg(regs.PTIMER_CNT, (physical + passed) & (1 << 64) - 1)

    def verify(self, on_damage: Callable[[VmmError], None]) -> None:
        """Check mapped memory in a new thread."""
        if self.reading is not Reading.LAZY:
            return

        def check() -> None:
            try:
                self.file.verify(self._stop.is_set)
            except VmmError as error:
                on_damage(error)

        self._verifier = threading.Thread(target=check, name="verify", daemon=True)
        self._verifier.start()

    def _fill(self, board: Board) -> None:
        """Restore the guest's memory; the snapshot must have the same areas."""
        with ExitStack() as undo:
            tags = tag_memories(board, undo)
            self._read({**board.slots.saved, **tags})
            write_tags(board.vm, tags)

    def _read(self, memories: Mapping[str, GuestMemory]) -> None:
        here = {name: (memory.base, memory.size) for name, memory in memories.items()}
        saved = {area.name: (area.base, area.size) for area in self.state.memory}
        if here != saved:
            raise UsageError(f"{self.path}: its memory areas differ from its config's")
        read_into = map_into if self.reading is Reading.LAZY else fill
        read_into(self.file, list(memories.values()))

    def _refuse_impossible(self, system: System) -> None:
        """Check the host before the machine is made.

        Raises: HostError, if the host lacks a part of the machine.
        """
        rows = machine_rows(self.state, limits_here(system))
        wrong = [row for row in rows if not row.allows(self.force)]
        if wrong:
            can_force = all(row.allows(True) for row in wrong)
            raise HostError(
                f"{self.path}: this host cannot restore it: "
                + "; ".join(f"{row.name}: {row.reason}" for row in wrong),
                hint="use `force` to restore it all the same"
                if can_force
                else f"`pyvmm snapshot check {self.path}` shows every row",
            )

    def _may_lose(self, loss: Loss) -> bool:
        registers = self.state.vcpus[loss.vcpu].registers
        return register_row(loss, registers).compatibility is Compatibility.HARMLESS


def default_reading(path: Path) -> Reading:
    """Return the faster way to read a file on its file system; docs/snapshots.md has the times.

    In an emulated host the user's files come through 9p.
    """
    is_shared = computer.file_system(path.stat().st_dev) == "9p"
    return Reading.EAGER if is_shared else Reading.LAZY


def restore(
    path: Path,
    output: Callable[[bytes], None] = write_to_stdout,
    *,
    name: str | None = None,
    reading: Reading | None = None,
    clock: ClockPolicy = ClockPolicy.CONTINUE,
    force: bool = False,
    given: Sequence[DeviceConfig] = (),
    trust: bool = False,
) -> Machine:
    """Make the machine in a snapshot; start() resumes its guest.

    ``output`` is passed to Machine, and ``name`` is its new name. The other arguments are passed to
    Restorer.

    Raises:
        UsageError: the file is missing, damaged, or not a snapshot.
        HostError: this host lacks a part of the machine.
    """
    restorer = Restorer(path, reading=reading, clock=clock, force=force, given=given, trust=trust)
    return Machine(named(restorer.config, name), output, restorer=restorer)


def named(config: Config, name: str | None) -> Config:
    """Return the Config with another name, and without the timeout of the saved run."""
    return config.replace(name=name or config.name, timeout_s=None)
