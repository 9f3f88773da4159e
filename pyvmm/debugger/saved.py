"""A snapshot as the target of a debugger: read-only, on any machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator, Sequence

from pyvmm.debugger.addresses import Cpu
from pyvmm.debugger.corefile import Piece
from pyvmm.debugger.protocol import Session
from pyvmm.debugger.target import Frozen
from pyvmm.errors import GuestError, UsageError
from pyvmm.kvm.uapi import MpState
from pyvmm.snapshot.snapshot import Snapshot

CHUNK = 16 << 10
HELP = ("info registers    every register of the vCPU",)


class SavedTarget(Frozen):
    """The machine in a snapshot, which cannot run."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.cpus = snapshot.vcpus
        self.vls = snapshot.state.vls

    def describe(self, cpu: Cpu) -> str:
        """Return a line about a vCPU's state."""
        state = MpState(self._snapshot.vcpus[cpu.id].get_mp_state()).name.lower()
        return f"vCPU {cpu.id} {state}, saved"

    def read_physical(self, gpa: int, length: int) -> bytes:
        """Read guest memory, and check it."""
        return read_memory(self._snapshot, gpa, length)

    def monitor(self, words: Sequence[str], cpu: Cpu) -> Iterable[str]:
        """Show registers: nothing else can be done with a snapshot."""
        if words in (["info", "registers"], ("info", "registers")):
            return self._registers(cpu)
        if not words or words[0] == "help":
            return HELP
        raise UsageError(f"a snapshot has no command {' '.join(words)[:60]!r}", hint="monitor help")

    def _registers(self, cpu: Cpu) -> Iterator[str]:
        found = self._snapshot.registers(cpu.id)
        yield from (f"{name:20} {value}" for name, value in found["registers"].items())


def read_memory(snapshot: Snapshot, gpa: int, length: int) -> bytes:
    """Read the guest memory of a snapshot.  Raises: GuestError, outside it."""
    areas = snapshot.state.memory
    if not any(area.base <= gpa and gpa + length <= area.end for area in areas):
        raise GuestError(f"{length:#x} bytes at guest address {gpa:#x} are not in memory")
    return snapshot.read(gpa, length)


def pieces_of(snapshot: Snapshot) -> list[Piece]:
    """Return the pieces of a snapshot's guest memory."""
    stored = snapshot.file.stored()
    return [
        Piece(area.base, area.size, [r for r in stored if r[0] < area.end and r[1] > area.base])
        for area in snapshot.state.memory
    ]


def converse(target: SavedTarget, connection: socket.socket) -> None:
    """Serve one debugger until it detaches or hangs up."""
    with contextlib.suppress(OSError):
        session = Session(target, connection.sendall)
        while not session.is_over and (data := connection.recv(CHUNK)):
            session.feed(data)
