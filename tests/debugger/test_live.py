"""A debugger and a running VM, by gdb's protocol, on a real KVM."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyvmm import layout
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.arm64.sysregs import ENCODINGS
from pyvmm.base.loop import Loop
from pyvmm.config import Config
from pyvmm.debugger.server import DebugServer
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.uapi import MpState
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from tests import programs
from tests.debugger.client import ENOUGH_S, Debugger

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]

PC, CPSR = 32, 33
ADD = 0x9100_0421  # add x1, x1, #1
BRK_7, SVC, SPIN, NOP = 0xD420_00E0, 0xD400_0001, 0x1400_0000, 0xD503_201F
STORE = 0xF900_0041  # str x1, [x2]
LOAD = 0xF940_0044  # ldr x4, [x2]
MRS_DAIF, MSR_DAIFCLR, MSR_DAIFSET = 0xD53B_4220, 0xD503_42FF, 0xD503_42DF
# mrs x5, esr_el1; mrs x6, elr_el1; mrs x7, spsr_el1; b .
HANDLER = (0xD538_5205, 0xD538_4026, 0xD538_4007, SPIN)
# CPACR_EL1.ZEN and FPEN, ZCR_EL1.LEN
ENABLE_SVE = (0xD2A0_0663, 0xD518_1043, 0xD280_01E3, 0xD518_1203, 0xD503_3FDF)
ZERO_Z0, COUNT_Z0 = 0x25F8_C000, 0x25E0_C020  # dup z0.d, #0; add z0.d, z0.d, #1
UNMASKED = Pstate.of(M=Mode.EL1h)
NZCV = 0xF000_0000
VBAR = regs.lookup("VBAR_EL1", ENCODINGS)
VECTORS = 0x800  # after the program
SYNC = 0x200


def words(*instructions: int) -> bytes:
    return struct.pack(f"<{len(instructions)}I", *instructions)


class Rig:
    """A machine that runs in a thread of its own, and its debuggers."""

    def __init__(
        self, path: Path, undo: ExitStack, code: tuple[int, ...] = (), **shape: Any
    ) -> None:
        options = {"vcpus": 1, "memory": 16 * MIB, "timeout_s": 240.0} | shape
        config = Config(image=programs.write("count", path), **options)
        self.machine = undo.enter_context(Machine(config, lambda data: None))
        self.entry = self.machine.image.entry
        if code:
            self.machine.memory.write(self.entry, words(*code))
        self.machine.memory.write(self.entry + VECTORS + SYNC, words(*HANDLER))
        self.machine.vcpus[0].set_one_reg(VBAR, self.entry + VECTORS)
        self.loop = undo.enter_context(Loop())
        self.server = DebugServer(self.loop, lambda: self.machine, self.machine.stop)
        self.machine.holder = "a test"  # as --gdb-wait does
        self.machine.pause()
        self._thread = threading.Thread(target=lambda: self.machine.run(self.loop))
        self._undo = undo
        undo.callback(self._end)

    def start(self) -> Debugger:
        """Start the machine, stopped, and connect a debugger."""
        self._thread.start()
        return self.connect()

    def connect(self) -> Debugger:
        """Connect a debugger."""
        ours, theirs = socket.socketpair()
        self._undo.callback(ours.close)
        self.loop.call(lambda: self.server.serve(theirs))
        return Debugger(ours)

    def wait(self, what: str = "") -> None:
        """Wait until no debugger is connected."""
        deadline = time.monotonic() + ENOUGH_S
        while self.server.is_busy:
            assert time.monotonic() < deadline, what
            time.sleep(0.01)

    def runs(self) -> bool:
        """Return whether X1 of vCPU 0 counts up."""
        with self.machine.paused():
            before = self.machine.vcpus[0].get_one_reg(regs.X(1))
        deadline = time.monotonic() + ENOUGH_S
        while time.monotonic() < deadline:
            time.sleep(0.01)
            with self.machine.paused():
                if self.machine.vcpus[0].get_one_reg(regs.X(1)) != before:
                    return True
        return False

    def _end(self) -> None:
        self.machine.stop()
        if self._thread.ident is not None:
            self._thread.join()


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_step_executes_one_instruction(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo)
    debugger = rig.start()

    places = []
    for _ in range(20):
        assert debugger.step().startswith(b"T05thread:1;")
        places.append((debugger.register(PC) - rig.entry, debugger.register(1)))

    assert places == [(4 if n % 2 else 0, (n + 1) // 2) for n in range(1, 21)]


@pytest.mark.timeout(1200)
def test_thousand_steps_of_vector_code_end_where_the_guest_would(
    tmp_path: Path, undo: ExitStack
) -> None:
    rig = Rig(tmp_path, undo, (*ENABLE_SVE, ZERO_Z0, COUNT_Z0, 0x17FF_FFFF))
    if not rig.machine.vls:
        pytest.skip("the host has no SVE")
    loop = rig.entry + 4 * len(ENABLE_SVE) + 4
    debugger = rig.start()
    debugger.ask(f"Z1,{loop:x},4")
    debugger.ask("vCont;c")
    debugger.ask(f"z1,{loop:x},4")
    debugger.ask("qXfer:features:read:target.xml:0,10")  # now at the length that the guest has set
    longest = max(rig.machine.vls) // 64

    for step in range(1, 1001):
        debugger.step()
        if step % 125 == 0:
            lanes = struct.unpack(f"<{longest}Q", bytes.fromhex(debugger.ask("p22").decode()))
            assert debugger.register(PC) == loop + 4 * (step % 2)
            assert lanes == ((step + 1) // 2,) * longest


def test_software_breakpoint_stops_and_is_not_in_memory(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo)
    debugger = rig.start()
    debugger.step()
    assert debugger.ask(f"Z0,{rig.entry:x},4") == b"OK"

    assert b"swbreak:;" in debugger.ask("vCont;c")

    assert (debugger.register(PC), debugger.register(1)) == (rig.entry, 1)
    assert debugger.memory(rig.entry, 4) == words(ADD)
    assert rig.machine.memory.read(rig.entry, 4) != words(ADD)
    assert debugger.ask(f"z0,{rig.entry:x},4") == b"OK"
    assert rig.machine.memory.read(rig.entry, 4) == words(ADD)


def test_write_over_a_breakpoint_changes_the_instruction_below_it(
    tmp_path: Path, undo: ExitStack
) -> None:
    rig = Rig(tmp_path, undo)
    debugger = rig.start()
    debugger.step()
    debugger.ask(f"Z0,{rig.entry:x},4")

    assert debugger.ask(f"M{rig.entry:x},4:{words(NOP).hex()}") == b"OK"

    assert b"swbreak" in debugger.ask("vCont;c")
    assert debugger.memory(rig.entry, 4) == words(NOP)
    debugger.ask(f"z0,{rig.entry:x},4")
    assert rig.machine.memory.read(rig.entry, 4) == words(NOP)


def test_hardware_breakpoint_stops_before_its_instruction(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo)
    debugger = rig.start()
    assert debugger.ask(f"Z1,{rig.entry + 4:x},4") == b"OK"

    assert b"hwbreak:;" in debugger.ask("vCont;c")

    assert (debugger.register(PC), debugger.register(1)) == (rig.entry + 4, 1)


@pytest.mark.parametrize(
    ("kind", "name", "instruction"),
    [(2, "watch", STORE), (3, "rwatch", LOAD), (4, "awatch", STORE)],
    ids=["write", "read", "access"],
)
def test_watchpoint_stops_at_an_access(
    tmp_path: Path, undo: ExitStack, kind: int, name: str, instruction: int
) -> None:
    rig = Rig(tmp_path, undo, (NOP, instruction, SPIN))
    where = rig.entry + 0x4000
    rig.machine.vcpus[0].set_one_reg(regs.X(2), where)
    debugger = rig.start()
    assert debugger.ask(f"Z{kind},{where:x},8") == b"OK"

    stop = debugger.ask("vCont;c")

    assert f"{name}:{where:x};".encode() in stop
    assert debugger.register(PC) == rig.entry + 4  # the access is not made yet


def test_points_are_as_many_as_kvm_reports(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo)
    has = {
        1: rig.machine.board.vm.check_extension(Cap.GUEST_DEBUG_HW_BPS),
        2: rig.machine.board.vm.check_extension(Cap.GUEST_DEBUG_HW_WPS),
    }
    debugger = rig.start()

    for kind, count in has.items():
        assert count > 0
        places = [f"Z{kind},{rig.entry + 0x1000 + 8 * n:x},4" for n in range(count + 1)]
        assert [debugger.ask(place) for place in places] == [b"OK"] * count + [b"E0e"]


def state_in_the_handler(rig: Rig, debugger: Debugger) -> list[int]:
    """Continue to the handler's end; return ESR, ELR, SPSR, PC and PSTATE without its flags.

    The architecture keeps the flags at an exception, and QEMU's CPU clears them.
    """
    end = rig.entry + VECTORS + SYNC + 12
    deadline = time.monotonic() + ENOUGH_S
    while True:
        debugger.send("vCont;c")
        time.sleep(0.05)
        debugger.interrupt()
        if debugger.register(PC) == end:
            pstate = debugger.register(CPSR) & ~NZCV
            return [*(debugger.register(n) for n in (5, 6, 7, PC)), pstate]
        assert time.monotonic() < deadline, hex(debugger.register(PC))


@pytest.mark.parametrize(
    "pstate", [UNMASKED, Pstate.of(M=Mode.EL1h, Z=1, I=1, D=1)], ids=["unmasked", "masked"]
)
def test_guests_own_brk_is_delivered_as_the_cpu_does(
    tmp_path: Path, undo: ExitStack, pstate: int
) -> None:
    states = []
    for with_breakpoint in (False, True):
        rig = Rig(tmp_path, undo, (NOP, BRK_7, SPIN))
        rig.machine.vcpus[0].set_one_reg(regs.PSTATE, pstate)
        debugger = rig.start()
        if with_breakpoint:  # then KVM reports every BRK to pyvmm
            debugger.ask(f"Z0,{rig.entry + 0x100:x},4")
        states.append(state_in_the_handler(rig, debugger))

    assert states[0] == states[1]
    assert states[0][0] & 0xFFFF == 7
    assert states[0][2] == pstate


def test_step_of_a_guests_brk_ends_in_its_handler(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo, (BRK_7, SPIN))
    rig.machine.vcpus[0].set_one_reg(regs.PSTATE, UNMASKED)
    debugger = rig.start()

    debugger.step()

    assert debugger.register(PC) == rig.entry + VECTORS + SYNC
    for _ in range(3):
        debugger.step()
    assert debugger.register(7) == UNMASKED


def test_steps_leave_the_interrupt_masks_as_the_guest_sets_them(
    tmp_path: Path, undo: ExitStack
) -> None:
    code = (NOP, MRS_DAIF, MSR_DAIFSET, MRS_DAIF, NOP, MSR_DAIFCLR, MRS_DAIF, SVC)
    rig = Rig(tmp_path, undo, code)
    rig.machine.vcpus[0].set_one_reg(regs.PSTATE, UNMASKED)
    debugger = rig.start()
    seen = []
    for _ in code:
        debugger.step()
        seen.append((debugger.register(CPSR) >> 6 & 0xF, debugger.register(0) >> 6 & 0xF))

    assert [masks for masks, _ in seen] == [0, 0, 2, 2, 2, 0, 0, 0xF]
    assert [read for _, read in seen[1:7]] == [0, 0, 2, 2, 2, 0]
    for _ in range(3):
        debugger.step()
    assert debugger.register(7) == UNMASKED  # SPSR_EL1


def test_step_moves_one_of_two_vcpus(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo, vcpus=2)
    second = rig.machine.vcpus[1]
    second.set_one_reg(regs.PC, rig.entry)
    second.set_mp_state(MpState.RUNNABLE)
    debugger = rig.start()

    for _ in range(4):
        assert debugger.step(2).startswith(b"T05thread:2;")
    assert (debugger.ask("Hg2"), debugger.register(1)) == (b"OK", 2)
    assert (debugger.ask("Hg1"), debugger.register(PC), debugger.register(1)) == (
        b"OK",
        rig.entry,
        0,
    )

    debugger.ask(f"Z1,{rig.entry + 4:x},4")
    assert debugger.ask("vCont;c:2").startswith(b"T05thread:2;hwbreak")
    assert debugger.ask("vCont;c:1").startswith(b"T05thread:1;hwbreak")


def test_step_of_a_vcpu_that_is_off_stops_at_once(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo, vcpus=2)

    assert rig.start().step(2).startswith(b"T05thread:2;")


def test_interrupt_stops_a_running_guest(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo)
    debugger = rig.start()
    debugger.send("vCont;c")

    assert debugger.interrupt().startswith(b"T02")

    assert rig.machine.is_paused


def test_guest_sees_what_the_debugger_writes(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo)
    debugger = rig.start()

    assert debugger.ask(f"P1={(1000).to_bytes(8, 'little').hex()}") == b"OK"
    assert debugger.ask(f"M{rig.entry:x},4:{words(0x9100_0821).hex()}") == b"OK"  # add x1, x1, #2
    debugger.step()

    assert debugger.register(1) == 1002


@pytest.mark.parametrize("how", ["detach", "close", "kill"])
def test_guest_runs_on_without_breakpoints_after_the_debugger(
    tmp_path: Path, undo: ExitStack, how: str
) -> None:
    rig = Rig(tmp_path, undo)
    debugger = rig.start()
    debugger.step()
    debugger.ask(f"Z0,{rig.entry:x},4")
    debugger.ask(f"Z1,{rig.entry + 4:x},4")
    if how == "detach":
        assert debugger.ask("D") == b"OK"
    elif how == "close":
        debugger.connection.close()
    else:  # while the guest runs
        debugger.ask(f"z0,{rig.entry:x},4")
        debugger.ask(f"z1,{rig.entry + 4:x},4")
        debugger.ask(f"Z1,{rig.entry + 0x100:x},4")
        debugger.send("vCont;c")
        debugger.connection.close()
    rig.wait()

    assert rig.runs()
    assert rig.machine.memory.read(rig.entry, 4) == words(ADD)
    assert rig.machine.holder == ""
    assert rig.connect().step().startswith(b"T05")


def test_guest_that_was_paused_stays_paused_after_the_debugger(
    tmp_path: Path, undo: ExitStack
) -> None:
    rig = Rig(tmp_path, undo)
    rig.machine.holder = ""  # the user paused it
    debugger = rig.start()

    debugger.ask("D")
    rig.wait()

    assert rig.machine.is_paused


def test_second_debugger_is_disconnected(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo)
    debugger = rig.start()

    with pytest.raises((EOFError, OSError)):
        rig.connect()

    assert debugger.step().startswith(b"T05")


def test_debugger_gets_the_guests_exit_code(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo, (0xB900_0041, SPIN))  # str w1, [x2]
    rig.machine.vcpus[0].set_one_reg(regs.X(1), 5)
    rig.machine.vcpus[0].set_one_reg(regs.X(2), layout.EXIT.base)
    debugger = rig.start()
    debugger.send("vCont;c")
    rig._thread.join(ENOUGH_S)

    rig.server.close(5)

    assert debugger.wait() == b"W05"


def test_no_bytes_of_a_client_harm_the_guest(tmp_path: Path, undo: ExitStack) -> None:
    rig = Rig(tmp_path, undo)
    rig.start().ask("D")
    rng = random.Random(19)
    sent = (b"", b"$vCont;c#a8", b"$g#67", b"\x03", b"$" + b"m" * 300_000)
    for _ in range(300):
        ours, theirs = socket.socketpair()
        with ours:
            rig.loop.call(partial(rig.server.serve, theirs))
            ours.settimeout(1)
            try:
                for _ in range(rng.randrange(4)):
                    data = rng.randbytes(rng.randrange(1, 200))
                    ours.sendall(rng.choice(sent) + b"$" + data)
            except OSError:  # it has been disconnected
                continue
    rig.wait()

    assert rig.runs()
    deadline = time.monotonic() + ENOUGH_S
    while True:  # the server refuses a client until it has seen the end of the others
        try:
            assert rig.connect().step().startswith(b"T05")
            break
        except ConnectionResetError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
