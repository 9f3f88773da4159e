"""The commands of gdb's remote serial protocol, for one debugger and one machine.

    session = Session(target, connection.sendall)
    session.feed(data)         the debugger's bytes
    session.stopped(stop)      the machine has stopped
    session.close()            the debugger has gone

A debugger cannot harm the machine's process: a packet that is wrong gets an error.

Source: the gdb manual, appendix E "GDB Remote Serial Protocol"; LLDB, docs/resources/lldbgdbremote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from pyvmm.debugger import features, values
from pyvmm.debugger.addresses import Cpu
from pyvmm.debugger.features import Reg
from pyvmm.debugger.packets import INTERRUPT, MOST, Framer, pack
from pyvmm.debugger.points import Kind, Point
from pyvmm.debugger.target import Action, Signal, Stop, Target, read_virtual, write_virtual
from pyvmm.errors import VmmError

OK: Final = b"OK"
UNKNOWN: Final = b""  # the protocol's reply to a command that a stub lacks
WRONG: Final = b"E01"  # the packet is malformed
REFUSED: Final = b"E0e"  # EFAULT: memory, a register or a point
ADDRESSES: Final = 1 << 64
MOST_TEXT: Final = MOST // 4  # bytes of console output in one packet
SUPPORTED: Final = (
    f"PacketSize={MOST:x};QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+;"
    "QThreadSuffixSupported-"
).encode()
HOST: Final = (
    "triple:aarch64-unknown-none;ptrsize:8;endian:little;watchpoint_exceptions_received:before;"
)
ATTACHED: Final = b"1"  # quitting detaches
# The registers that come with each stop
EXPEDITED: Final = ("x29", "sp", "pc", "cpsr", "vg")


class Malformed(Exception):
    """A packet that does not follow the protocol."""


class Session:
    """A conversation with one debugger."""

    def __init__(self, target: Target, send: Callable[[bytes], None]) -> None:
        self.is_over = False  # the debugger has detached
        self._target = target
        self._send = send
        self._framer = Framer()
        self._acknowledges = True
        self._is_running = False
        self._physical = False  # memory commands use physical addresses
        self._follows = False  # the debugger takes the size of vectors from vg: lldb does
        self._general, self._resumed = 0, -1  # the vCPUs of Hg and Hc; -1: all
        self._last = Stop(0, Signal.TRAP)
        self._registers: list[Reg] = []
        self._described = 0  # the vector length of the description
        self._description = b""
        self._describe()

    def feed(self, data: bytes) -> None:
        """Handle bytes from the debugger."""
        for packet in self._framer.feed(data):
            if self.is_over:
                return
            if packet == INTERRUPT:
                self._target.interrupt()
            elif packet is None:
                self._send(b"-" if self._acknowledges else pack(WRONG))
            else:
                self._handle(packet)

    def stopped(self, stop: Stop) -> None:
        """Report that the machine has stopped."""
        if self._is_running:
            self._is_running = False
            self._last = stop
            self._general = stop.vcpu
            self._say_length()
            self._send(pack(self._stop_reply()))

    def ended(self, code: int) -> None:
        """Report that the machine has ended with an exit code."""
        if not self.is_over:
            self._send(pack(b"W%02x" % (code & 0xFF)))
            self.is_over = True

    def close(self) -> None:
        """Detach from the machine, if the debugger has not; idempotent."""
        if not self.is_over:
            self.is_over = True
            self._target.detach()

    def _handle(self, packet: bytes) -> None:
        if self._acknowledges:
            self._send(b"+")
        if self._is_running:  # nothing but an interrupt is defined then
            return
        try:
            reply = self._reply(packet)
        except Malformed:
            reply = WRONG
        except VmmError:
            reply = REFUSED
        if reply is not None:
            self._send(pack(reply))

    def _reply(self, packet: bytes) -> bytes | None:
        """Return the reply to a packet; None if it comes later.

        Raises:
            Malformed: the packet is wrong.
            VmmError: the machine cannot do it.
        """
        try:
            text = packet.decode("latin-1")
            for start, handler in _NAMED.items():
                if text == start or text.startswith((f"{start}:", f"{start};", f"{start},")):
                    return handler(self, text[len(start) + 1 :])
            letter = _LETTERS.get(text[:1])
            return UNKNOWN if letter is None else letter(self, text[1:])
        except (ValueError, LookupError, OverflowError) as error:
            raise Malformed from error

    # Registers

    @property
    def _cpu(self) -> Cpu:
        return self._target.cpus[self._general]

    def _describe(self) -> None:
        """Make the description for the present vector lengths, the longest of all vCPUs."""
        target = self._target
        lengths = [values.vectors(cpu, target.vls).current for cpu in target.cpus]
        first = target.cpus[0]
        self._described = max(lengths)
        has_pauth = values.has_pauth(first)
        listed = first.get_reg_list()
        self._registers = features.layout(listed, self._described, has_pauth)
        self._description = features.describe(self._registers).encode()

    def _say_length(self) -> None:
        """Say that the vector length differs from the description's."""
        has = values.vectors(self._cpu, self._target.vls)
        if has.current != self._described and not self._follows:
            self._print(
                f"pyvmm: the vector length of vCPU {self._cpu.id} is {has.current} bits now; gdb "
                f"shows {self._described} until `unset tdesc filename`\n"
            )

    def _read(self, registers: Iterable[Reg]) -> list[bytes | None]:
        return values.read(self._cpu, registers, values.vectors(self._cpu, self._target.vls))

    def _sized(self, registers: Iterable[Reg]) -> list[Reg]:
        """Return registers with the sizes that the debugger gives them at this moment."""
        if not self._follows:
            return list(registers)
        current = values.vectors(self._cpu, self._target.vls).current
        return [features.resized(register, current) for register in registers]

    def _read_all(self, _: str) -> bytes:
        chosen = self._sized(one for one in self._registers if one.feature in features.IN_G)
        return b"".join(
            b"xx" * (one.bits // 8) if value is None else value.hex().encode()
            for one, value in zip(chosen, self._read(chosen), strict=True)
        )

    def _write_all(self, text: str) -> bytes:
        self._check_writable()
        data = bytes.fromhex(text)
        has = values.vectors(self._cpu, self._target.vls)
        for one in self._sized(self._registers):
            if one.feature not in features.IN_G or len(data) < one.bits // 8:
                break
            if one.name != features.VG:
                values.write(self._cpu, one, data[: one.bits // 8], has)
            data = data[one.bits // 8 :]
        return OK

    def _read_one(self, text: str) -> bytes:
        (register,) = self._sized([self._registers[_hex(text)]])
        (value,) = self._read([register])
        return b"xx" * (register.bits // 8) if value is None else value.hex().encode()

    def _write_one(self, text: str) -> bytes:
        self._check_writable()
        number, equals, data = text.partition("=")
        (register,) = self._sized([self._registers[_hex(number)]])
        value = bytes.fromhex(data)
        if not equals or len(value) != register.bits // 8:
            raise Malformed
        values.write(self._cpu, register, value, values.vectors(self._cpu, self._target.vls))
        return OK

    def _check_writable(self) -> None:
        if not self._target.is_live:
            raise VmmError("a snapshot is read-only")

    # Memory

    def _read_memory(self, text: str) -> bytes:
        address, length = _pair(text)
        if length > MOST // 2:
            length = MOST // 2  # a reply may be shorter
        if self._physical:
            return self._target.read_physical(address, length).hex().encode()
        return read_virtual(self._target, self._cpu, address, length).hex().encode()

    def _write_memory(self, text: str) -> bytes:
        where, _, data = text.partition(":")
        return self._write(where, bytes.fromhex(data))

    def _write_binary(self, text: str) -> bytes:
        where, _, data = text.partition(":")
        return self._write(where, data.encode("latin-1"))

    def _write(self, where: str, data: bytes) -> bytes:
        self._check_writable()
        address, length = _pair(where)
        if length != len(data):
            raise Malformed
        if self._physical:
            self._target.write_physical(address, data)
        else:
            write_virtual(self._target, self._cpu, address, data)
        return OK

    def _set_physical(self, text: str) -> bytes:
        self._physical = {"0": False, "1": True}[text]
        return OK

    def _get_physical(self, _: str) -> bytes:
        return b"1" if self._physical else b"0"

    # Breakpoints

    def _insert(self, text: str) -> bytes:
        point = _point(text)
        if point is None:
            return UNKNOWN
        self._target.insert(point, self._cpu)
        return OK

    def _remove(self, text: str) -> bytes:
        point = _point(text)
        if point is None:
            return UNKNOWN
        self._target.remove(point)
        return OK

    # vCPUs: thread n + 1 is vCPU n

    def _select(self, text: str) -> bytes:
        operation, thread = text[:1], text[1:]
        number = _thread(thread)
        if operation == "g":
            self._general = self._number(number, self._last.vcpu)
        elif operation == "c":
            self._resumed = self._number(number, -1)
        else:
            return UNKNOWN
        return OK

    def _number(self, thread: int, usual: int) -> int:
        """Return the vCPU of a thread; 0 is any, -1 is all."""
        if thread <= 0:
            return usual
        if thread > len(self._target.cpus):
            raise Malformed
        return thread - 1

    def _is_alive(self, text: str) -> bytes:
        self._number(_hex(text), 0)
        return OK

    def _current(self, _: str) -> bytes:
        return b"QC%x" % (self._general + 1)

    def _threads(self, _: str) -> bytes:
        return b"m" + ",".join(f"{cpu.id + 1:x}" for cpu in self._target.cpus).encode()

    def _about_thread(self, text: str) -> bytes:
        cpu = self._target.cpus[self._number(_hex(text), 0)]
        return self._target.describe(cpu).encode().hex().encode()

    # Running

    def _why(self, _: str) -> bytes:
        return self._stop_reply()

    def _stop_reply(self) -> bytes:
        stop = self._last
        parts = [f"T{stop.signal:02x}thread:{stop.vcpu + 1:x};"]
        parts += [f"{stop.reason};"] if stop.reason else []
        if stop.reason.endswith("break"):
            parts[-1] = f"{stop.reason}:;"
        wanted = [n for n, one in enumerate(self._registers) if one.name in EXPEDITED]
        read = self._read([self._registers[number] for number in wanted])
        pairs = zip(wanted, read, strict=True)
        parts += [f"{number:x}:{value.hex()};" for number, value in pairs if value is not None]
        return "".join(parts).encode()

    def _resume(self, actions: dict[int, Action]) -> None:
        self._target.resume(actions)
        self._is_running = True

    def _go(self, action: Action, text: str) -> None:
        """Continue the vCPU of Hc, or all of them; or step one vCPU."""
        if text:
            pc = next(one for one in self._registers if one.name == "pc")
            self._write_one(
                f"{self._registers.index(pc):x}={_hex(text).to_bytes(8, 'little').hex()}"
            )
        everyone = {cpu.id: Action.CONTINUE for cpu in self._target.cpus}
        if action is Action.STEP:
            number = self._resumed if self._resumed >= 0 else self._last.vcpu
            self._resume({number: action})
        elif self._resumed >= 0:
            self._resume({self._resumed: action})
        else:
            self._resume(everyone)

    def _continue(self, text: str) -> None:
        self._go(Action.CONTINUE, text)

    def _step(self, text: str) -> None:
        self._go(Action.STEP, text)

    def _continue_with(self, text: str) -> None:
        self._continue(text.partition(";")[2])

    def _step_with(self, text: str) -> None:
        self._step(text.partition(";")[2])

    def _can_continue(self, _: str) -> bytes:
        return b"vCont;c;C;s;S"

    def _continue_many(self, text: str) -> None:
        """Handle vCont: the first action that matches a vCPU is its own."""
        actions: dict[int, Action] = {}
        for item in text.split(";"):
            what, colon, thread = item.partition(":")
            action = {"c": Action.CONTINUE, "s": Action.STEP}[what[:1].lower()]
            number = self._number(_thread(thread), -1) if colon else -1
            for cpu in self._target.cpus:
                if number in (-1, cpu.id):
                    actions.setdefault(cpu.id, action)
        self._resume(actions)

    def _interrupt(self, _: str) -> bytes:
        self._target.interrupt()
        return OK

    # The conversation

    def _supported(self, _: str) -> bytes:
        return SUPPORTED

    def _stop_acknowledging(self, _: str) -> None:
        """Handle QStartNoAckMode; its own reply is still acknowledged."""
        self._send(pack(OK))
        self._acknowledges = False

    def _transfer(self, text: str) -> bytes:
        """Return a part of the target description (qXfer); make it again for the first part."""
        name, operation, annex, where = text.split(":")
        if (name, operation) != ("features", "read"):
            return UNKNOWN
        if annex != "target.xml":
            return b"E00"
        offset, length = _pair(where)
        if not offset:
            self._describe()
        part = self._description[offset : offset + min(length, MOST // 2)]
        return (b"m" if offset + len(part) < len(self._description) else b"l") + part

    def _host(self, _: str) -> bytes:
        """Handle qHostInfo, which lldb alone sends."""
        self._follows = True
        return HOST.encode()

    def _process(self, _: str) -> bytes:
        return b"pid:1;" + HOST.encode()

    def _attached(self, _: str) -> bytes:
        return ATTACHED

    def _detach(self, _: str) -> bytes:
        """Handle detach, and kill too: lldb kills when it quits. `monitor quit` ends the VM."""
        self.close()
        return OK

    def _nothing(self, _: str) -> bytes:
        return UNKNOWN

    def _command(self, text: str) -> bytes:
        """Handle a command for the machine: gdb's `monitor`."""
        words = bytes.fromhex(text).decode("utf-8", "replace").split()
        if words[:1] == ["physical"] and words[1:] in ([], ["on"], ["off"]):
            self._physical = words[1:] == ["on"] if words[1:] else self._physical
            self._print(f"addresses are {'physical' if self._physical else 'virtual'}\n")
            return OK
        try:
            for line in self._target.monitor(words, self._cpu):
                self._print(f"{line}\n")
        except VmmError as error:
            self._print(f"pyvmm: {error}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return OK

    def _print(self, text: str) -> None:
        """Print a text on the debugger's console."""
        data = text.encode()
        for at in range(0, len(data), MOST_TEXT):
            self._send(pack(b"O" + data[at : at + MOST_TEXT].hex().encode()))


def _hex(text: str) -> int:
    """Read an unsigned hexadecimal number of up to 64 bits."""
    if not text or len(text) > 16 or not text.isalnum():
        raise Malformed
    return int(text, 16)


def _pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition(",")
    return _hex(first), _hex(second)


def _thread(text: str) -> int:
    """Read a thread's number, which may be -1; in p1.2 a process's number precedes it."""
    number = text.rpartition(".")[2].removeprefix("p")
    return -1 if number == "-1" else _hex(number)


def _point(text: str) -> Point | None:
    """Read a breakpoint or watchpoint; None for a kind that the protocol lacks."""
    kind, address, length, *_ = text.partition(";")[0].split(",")
    if kind not in {str(int(known)) for known in Kind}:
        return None
    return Point(Kind(int(kind)), _hex(address), _hex(length))


Handler = Callable[[Session, str], bytes | None]
_S = Session
# Commands with a name; what follows it, after a colon, semicolon or comma, is the argument
_NAMED: Final[dict[str, Handler]] = {
    "qSupported": _S._supported,
    "QStartNoAckMode": _S._stop_acknowledging,
    "qXfer": _S._transfer,
    "qHostInfo": _S._host,
    "qProcessInfo": _S._process,
    "qAttached": _S._attached,
    "qC": _S._current,
    "qfThreadInfo": _S._threads,
    "qsThreadInfo": lambda session, text: b"l",
    "qThreadExtraInfo": _S._about_thread,
    "qRcmd": _S._command,
    "qqemu.PhyMemMode": _S._get_physical,
    "Qqemu.PhyMemMode": _S._set_physical,
    "vCont?": _S._can_continue,
    "vCont": _S._continue_many,
    "vCtrlC": _S._interrupt,
    "vKill": _S._detach,
    "vMustReplyEmpty": _S._nothing,
}
# Commands of one letter; what follows it is the argument
_LETTERS: Final[dict[str, Handler]] = {
    "?": _S._why, "c": _S._continue, "C": _S._continue_with, "D": _S._detach, "g": _S._read_all,
    "G": _S._write_all, "H": _S._select, "k": _S._detach, "m": _S._read_memory,
    "M": _S._write_memory, "p": _S._read_one, "P": _S._write_one, "s": _S._step,
    "S": _S._step_with, "T": _S._is_alive, "X": _S._write_binary, "z": _S._remove,
    "Z": _S._insert,
}  # fmt: skip
