"""A debugger's end of gdb's protocol, and a made-up machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyvmm.debugger.addresses import Cpu
from pyvmm.debugger.packets import Framer, pack
from pyvmm.debugger.points import Point
from pyvmm.debugger.protocol import Session
from pyvmm.debugger.target import Action, Target
from pyvmm.errors import GuestError, UsageError
from pyvmm.kvm import regs
from pyvmm.snapshot.snapshot import SnapshotVcpu
from tests.snapshot import sample

BASE, SIZE = 0x8000_0000, 0x1_0000
ENOUGH_S = 60.0


class MadeUpCpu(SnapshotVcpu):
    """A saved vCPU whose registers can be written."""

    def set_one_reg(self, reg_id: int, value: int) -> None:
        """Write a register."""
        self.state.registers[reg_id] = value


class MadeUp(Target):
    """A machine with two vCPUs, some memory and the MMU off; it records what is asked of it."""

    is_live = True

    def __init__(self) -> None:
        self.saved = tuple(MadeUpCpu(sample.vcpu(n)) for n in range(2))
        self.cpus = self.saved
        for cpu in self.cpus:
            for name in ("SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1"):
                cpu.set_one_reg(regs.lookup(name, _encodings()), 0)
            cpu.set_one_reg(regs.SP_EL1, 0x8000_8000)
            cpu.set_one_reg(regs.FPSR, 0)
        self.vls = sample.VLS
        self.memory = bytearray(SIZE)
        self.asked: list[Any] = []

    def describe(self, cpu: Cpu) -> str:
        return f"vCPU {cpu.id}"

    def read_physical(self, gpa: int, length: int) -> bytes:
        self._check(gpa, length)
        return bytes(self.memory[gpa - BASE : gpa - BASE + length])

    def write_physical(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self.memory[gpa - BASE : gpa - BASE + len(data)] = data

    def _check(self, gpa: int, length: int) -> None:
        if not (gpa >= BASE and gpa + length <= BASE + SIZE):
            raise GuestError("outside memory")

    def resume(self, actions: Mapping[int, Action]) -> None:
        self.asked.append(dict(actions))

    def interrupt(self) -> None:
        self.asked.append("interrupt")

    def insert(self, point: Point, cpu: Cpu) -> None:
        if point.length > 64:
            raise GuestError("too long")
        self.asked.append(point)

    def remove(self, point: Point) -> None:
        self.asked.append(("remove", point))

    def detach(self) -> None:
        self.asked.append("detach")

    def monitor(self, words: Sequence[str], cpu: Cpu) -> Iterable[str]:
        if words != ["hello"]:
            raise UsageError("no such command", hint="hello")
        yield "world"


def _encodings() -> dict[str, int]:
    from pyvmm.arm64.sysregs import ENCODINGS

    return ENCODINGS


class Conversation:
    """A session with a made-up machine, without acknowledgements."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = MadeUp() if target is None else target
        self.sent = bytearray()
        self.session = Session(self.target, self._take)
        self._framer = Framer()
        assert self.replies("QStartNoAckMode") == [b"OK"]

    def _take(self, data: bytes) -> None:
        self.sent += data

    def replies(self, packet: str | bytes) -> list[bytes | None]:
        """Send a packet, and return all that comes back."""
        data = packet.encode() if isinstance(packet, str) else packet
        self.session.feed(pack(data))
        return self.taken()

    def taken(self) -> list[bytes | None]:
        """Return the packets that have come."""
        found = list(self._framer.feed(bytes(self.sent)))
        self.sent.clear()
        return found

    def ask(self, packet: str | bytes) -> bytes:
        """Send a packet, and return its one reply."""
        (reply,) = self.replies(packet)
        assert reply is not None
        return reply


class Debugger:
    """A debugger's connection to a server, for tests of the whole way."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._framer = Framer()
        self._waiting: list[bytes] = []
        self.console = ""
        connection.settimeout(ENOUGH_S)
        connection.sendall(pack(b"QStartNoAckMode"))
        assert self.wait() == b"OK"

    def wait(self) -> bytes:
        """Wait for a packet; console output is collected."""
        deadline = time.monotonic() + ENOUGH_S
        while True:
            while self._waiting:
                packet = self._waiting.pop(0)
                if packet[:1] == b"O" and packet != b"OK":
                    self.console += bytes.fromhex(packet[1:].decode()).decode()
                    continue
                return packet
            assert time.monotonic() < deadline
            data = self.connection.recv(1 << 16)
            if not data:
                raise EOFError
            self._waiting += [packet for packet in self._framer.feed(data) if packet is not None]

    def send(self, packet: str | bytes) -> None:
        """Send a packet."""
        self.connection.sendall(pack(packet.encode() if isinstance(packet, str) else packet))

    def ask(self, packet: str | bytes) -> bytes:
        """Send a packet, and return its reply."""
        self.send(packet)
        return self.wait()

    def register(self, number: int) -> int:
        """Return a register by its number."""
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}").decode()), "little")

    def memory(self, address: int, length: int) -> bytes:
        """Return memory."""
        return bytes.fromhex(self.ask(f"m{address:x},{length:x}").decode())

    def step(self, thread: int = 1) -> bytes:
        """Step one vCPU, and return the reply."""
        return self.ask(f"vCont;s:{thread:x}")

    def interrupt(self) -> bytes:
        """Interrupt the machine, and return the reply."""
        self.connection.sendall(b"\x03")
        return self.wait()
