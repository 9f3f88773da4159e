"""What gdb's protocol needs of a machine: a running VM, or a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Protocol

from pyvmm.arm64.vl import VlSet
from pyvmm.base.records import Record
from pyvmm.debugger.addresses import Cpu, pieces, regime_of
from pyvmm.debugger.points import Point
from pyvmm.errors import UsageError, VmmError


class Signal(IntEnum):
    """The numbers of gdb's own signals.  Source: gdb, include/gdb/signals.def"""

    INT = 2
    TRAP = 5


class Action(IntEnum):
    """What a vCPU does when the debugger resumes the machine."""

    CONTINUE = 0
    STEP = 1


class Stop(Record):
    """Why the machine stopped: which vCPU, and a reason of the protocol such as "hwbreak"."""

    vcpu: int
    signal: Signal
    reason: str = ""


class Target(Protocol):
    """A machine whose vCPUs are stopped, except between ``resume`` and a Stop."""

    cpus: Sequence[Cpu]
    vls: VlSet
    is_live: bool  # it runs, and can be written

    def describe(self, cpu: Cpu) -> str:
        """Return a line about a vCPU's state."""

    def read_physical(self, gpa: int, length: int) -> bytes:
        """Read guest memory.  Raises: VmmError, outside it."""

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Write guest memory.  Raises: VmmError, outside it."""

    def resume(self, actions: Mapping[int, Action]) -> None:
        """Let these vCPUs run or step; the others stay stopped."""

    def interrupt(self) -> None:
        """Stop all vCPUs soon."""

    def insert(self, point: Point, cpu: Cpu) -> None:
        """Insert a point; the page tables of ``cpu`` translate its address.  Raises: VmmError."""

    def remove(self, point: Point) -> None:
        """Remove a point, if it is there."""

    def detach(self) -> None:
        """Leave the machine as it was before the debugger came."""

    def monitor(self, words: Sequence[str], cpu: Cpu) -> Iterable[str]:
        """Run a command for the machine, and yield its output.  Raises: VmmError."""


class Frozen(Target):
    """The operations of a machine that cannot run."""

    is_live = False

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Refuse the write."""
        raise _refused()

    def resume(self, actions: Mapping[int, Action]) -> None:
        """Refuse to run."""
        raise _refused()

    def interrupt(self) -> None:
        """Do nothing: the machine does not run."""

    def insert(self, point: Point, cpu: Cpu) -> None:
        """Refuse the point."""
        raise _refused()

    def remove(self, point: Point) -> None:
        """Do nothing: there are no points."""

    def detach(self) -> None:
        """Do nothing: nothing was changed."""


def read_virtual(target: Target, cpu: Cpu, va: int, length: int) -> bytes:
    """Read memory by virtual address, up to the first byte that cannot be read.

    Raises: VmmError, if that is the first one.
    """
    found = bytearray()
    try:
        for gpa, size in pieces(regime_of(cpu), target.read_physical, va, length):
            found += target.read_physical(gpa, size)
    except VmmError:
        if not found:
            raise
    return bytes(found)


def write_virtual(target: Target, cpu: Cpu, va: int, data: bytes) -> None:
    """Write memory by virtual address: all of it, or nothing.

    Raises: VmmError, if a byte is not mapped, or is outside memory.
    """
    found = list(pieces(regime_of(cpu), target.read_physical, va, len(data)))
    for gpa, size in found:
        target.read_physical(gpa, size)
    at = 0
    for gpa, size in found:
        target.write_physical(gpa, data[at : at + size])
        at += size


def _refused() -> UsageError:
    return UsageError("a snapshot is read-only: it cannot run or be changed")
