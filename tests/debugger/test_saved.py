"""A snapshot in debuggers: gdb's protocol, then Debian's gdb and lldb, on any machine."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.arm64.sysregs import ENCODINGS
from pyvmm.debugger.saved import SavedTarget, converse
from pyvmm.host.parts.tools import Tool
from pyvmm.host.progress import Progress
from pyvmm.kvm import regs
from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.snapshot import Snapshot
from pyvmm.snapshot.state import State
from tests import tools
from tests.debugger.client import Debugger
from tests.snapshot.files import save_machine
from tests.snapshot.sample import state

SERVED = re.compile(r"target remote (\S+)")
PC = 0x8008_0000
ADD = bytes.fromhex("21040091")  # add x1, x1, #1


def with_system_registers(saved: State) -> State:
    """Give every vCPU the registers of a CPU whose MMU is off."""
    for vcpu in saved.vcpus:
        for name in ("SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1"):
            vcpu.registers[regs.lookup(name, ENCODINGS)] = 0
        vcpu.registers[regs.SP_EL1] = RAM_BASE + 0x8000
        vcpu.registers[regs.FPSR] = 0
    return saved


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "a.snap"
    saved = with_system_registers(state())
    with GuestMemory(RAM_BASE, saved.memory[0].size) as memory:
        memory.write(PC, ADD * 4)
        save_machine(path, saved, memory)
    return path


@pytest.fixture
def debugger(snapshot: Path) -> Iterator[Debugger]:
    ours, theirs = socket.socketpair()
    with Snapshot(snapshot) as opened, ours, theirs:
        thread = threading.Thread(target=converse, args=(SavedTarget(opened), theirs))
        thread.start()
        yield Debugger(ours)
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_snapshot_shows_registers_and_memory(debugger: Debugger) -> None:
    assert debugger.register(32) == PC
    assert debugger.memory(PC, 8) == ADD * 2
    assert debugger.ask(f"m{RAM_BASE - 16:x},4") == b"E0e"
    assert debugger.ask("qfThreadInfo") == b"m1,2"
    assert debugger.ask("qRcmd," + b"info registers".hex()) == b"OK"
    assert "TCR_EL1" in debugger.console


@pytest.mark.parametrize(
    "packet", ["c", "s", "vCont;c", "P1=0000000000000000", f"M{PC:x},1:00", f"Z0,{PC:x},4", "G00"]
)
def test_snapshot_is_read_only(debugger: Debugger, packet: str) -> None:
    assert debugger.ask(packet) == b"E0e"


def test_snapshot_that_lacks_registers_is_shown_without_them(tmp_path: Path) -> None:
    path = tmp_path / "b.snap"
    save_machine(path, state())
    ours, theirs = socket.socketpair()
    with Snapshot(path) as opened, ours, theirs:
        threading.Thread(target=converse, args=(SavedTarget(opened), theirs), daemon=True).start()
        debugger = Debugger(ours)

        assert debugger.ask("g").startswith(b"000000000000ffff")
        assert debugger.ask(f"m{PC:x},4") == b"E0e"
        assert debugger.ask("D") == b"OK"


@pytest.fixture
def place(snapshot: Path, pyvmm_cmd: list[str]) -> Iterator[str]:
    """Serve the snapshot by the command; return where."""
    command = [*pyvmm_cmd, "gdb", "--serve", str(snapshot)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            match = SERVED.search(server.stderr.readline())
            assert match is not None
            yield match[1]
        finally:
            server.terminate()


def output(tool: Tool, *arguments: str) -> str:
    environment = {**os.environ, **tool.environment}
    done = subprocess.run(
        [*tool.command, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_gdb_shows_a_snapshot(place: str) -> None:
    lines = ("set architecture aarch64", f"target remote {place}", "info threads", "x/2i $pc",
             "print/x $z1.d.u", "print $vg", "print/x $SP_EL1", "stepi", "detach")  # fmt: skip
    shown = output(tools.gdb(Progress()), "-nx", "-batch", *(f"-ex={line}" for line in lines))

    assert "Thread 1 (vCPU 0 runnable, saved)" in shown
    assert "add\tx1, x1, #0x1" in shown
    assert "{0x202020202020202, 0x202020202020202, 0x202020202020202, 0x202020202020202}" in shown
    assert "$2 = 4" in shown
    assert "$3 = 0x80008000" in shown
    assert "detached" in shown


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_lldb_shows_a_snapshot(place: str) -> None:
    lines = (f"process connect unix-connect://{place}", "thread list", "register read z1 p1 vg",
             "register read SP_EL1", f"disassemble -s {PC:#x} -c 1", "process detach")  # fmt: skip
    words = [word for line in lines for word in ("-o", line)]
    shown = output(tools.lldb(Progress()), "--no-lldbinit", "-b", *words)

    assert "thread #2" in shown
    assert f"z1 = {{{' '.join(['0x02'] * 32)}}}" in shown
    assert "p1 = {0x54 0x55 0x55 0x55}" in shown
    assert "vg = 0x0000000000000004" in shown
    assert "SP_EL1 = 0x0000000080008000" in shown
    assert "add    x1, x1, #0x1" in shown
