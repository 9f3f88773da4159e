"""A running VM as the target of a debugger.

The session, the control socket and this class work in the loop's thread. A vCPU's debug exit is
handled in the vCPU's own thread, which then parks until the loop's thread has stopped the others.
Breakpoints change only while every vCPU is parked.

KVM: while KVM_SET_GUEST_DEBUG is in force, the guest's own BRK instructions come here too, and
the guest's own hardware breakpoints and single steps do not work.
Source: Linux, Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG; arch/arm64/kvm/debug.c.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from pyvmm.arm64.translation import translate
from pyvmm.arm64.vl import VlSet
from pyvmm.base.loop import Loop
from pyvmm.base.records import Record
from pyvmm.debugger import guestbrk, stepping
from pyvmm.debugger.addresses import Cpu, regime_of
from pyvmm.debugger.monitor import run_command
from pyvmm.debugger.points import (
    BRK,
    NAMES,
    Kind,
    Point,
    breakpoint_registers,
    watchpoint_registers,
)
from pyvmm.debugger.target import Action, Signal, Stop, Target
from pyvmm.errors import GuestError, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.native import sync_code
from pyvmm.kvm.uapi import (
    GUESTDBG_ENABLE,
    GUESTDBG_SINGLESTEP,
    GUESTDBG_USE_HW,
    GUESTDBG_USE_SW_BP,
    MpState,
)
from pyvmm.machine.machine import Machine
from pyvmm.machine.vcpus import MachineVcpu

HOLDER = "a debugger"
EC_SHIFT = 26
# Exception classes of debug exits.  Source: Arm ARM DDI 0487, D23.2 "ESR_EL2", EC
BREAKPOINT, STEP, WATCHPOINT, BRK64 = 0x30, 0x32, 0x34, 0x3C


class Patch(Record):
    """A software breakpoint: the instruction that BRK has replaced."""

    point: Point
    original: bytes


class LiveTarget(Target):
    """A VM that a debugger has stopped; see Target.

    ``machine`` returns the machine, which a reboot replaces. ``on_stop`` is called in the loop's
    thread. ``quit_`` ends the VM.
    """

    is_live = True

    def __init__(
        self,
        machine: Callable[[], Machine],
        loop: Loop,
        on_stop: Callable[[Stop], None],
        quit_: Callable[[], None],
    ) -> None:
        """Stop the VM.  Raises: VmmError, if it has ended, or has AArch32."""
        self._machine = machine
        self._loop = loop
        self._on_stop = on_stop
        self._quit = quit_
        self._patches: dict[int, Patch] = {}  # by physical address
        self._hardware: list[Point] = []
        self._stops: list[Stop] = []  # that vCPUs' threads have found
        self._hidden: dict[int, stepping.Hidden] = {}  # interrupts, while a vCPU steps
        self._is_running = False
        self._scratch = os.memfd_create("debugger", os.MFD_CLOEXEC)
        self._was_paused = machine().is_paused and not machine().holder
        self.adopt()
        machine().pause()
        self._complete(machine().vcpus)

    @property
    def cpus(self) -> Sequence[MachineVcpu]:  # type: ignore[override]  # a property, for a field
        """The vCPUs."""
        return self._machine().vcpus

    @property
    def vls(self) -> VlSet:  # type: ignore[override]  # as above
        """The vector lengths of every vCPU."""
        return self._machine().vls

    def adopt(self) -> None:
        """Take over a machine; a new one after a reset has no software breakpoints."""
        machine = self._machine()
        self._patches.clear()
        machine.holder = HOLDER
        machine.debug(self._on_debug)
        if self._hardware:
            self._apply({})

    def describe(self, cpu: Cpu) -> str:
        """Return a line about a vCPU's state."""
        state = MpState(self.cpus[cpu.id].get_mp_state()).name.lower()
        return f"vCPU {cpu.id} {state}"

    # Memory

    def read_physical(self, gpa: int, length: int) -> bytes:
        """Read guest memory, as it is without the breakpoints."""
        data = bytearray(self._machine().board.addressable.view(gpa, length))
        for at, patch in self._patches.items():
            for n, byte in enumerate(patch.original):
                if gpa <= at + n < gpa + length:
                    data[at + n - gpa] = byte
        return bytes(data)

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Write guest memory; the breakpoints in it stay."""
        wanted = bytearray(data)
        for at, patch in self._patches.items():
            original = bytearray(patch.original)
            for n in range(len(original)):
                if gpa <= at + n < gpa + len(data):
                    original[n] = data[at + n - gpa]
                    wanted[at + n - gpa] = BRK[n]
            self._patches[at] = patch.replace(original=bytes(original))
        self._write(gpa, wanted)

    def _write(self, gpa: int, data: bytes | bytearray) -> None:
        """Write memory as GuestMemory.load() does; make instructions visible to all CPUs."""
        with self._machine().board.addressable.view(gpa, len(data)) as view:
            os.pwrite(self._scratch, data, 0)
            try:
                os.preadv(self._scratch, [view], 0)
            except OSError as error:
                raise GuestError(f"memory at {gpa:#x} cannot be written: {error}") from error
            sync_code(view)

    # Running

    def resume(self, actions: Mapping[int, Action]) -> None:
        """Let these vCPUs run or step."""
        machine = self._machine()
        self._stops.clear()
        self._apply(actions)
        self._is_running = True
        stepped = [number for number, action in actions.items() if action is Action.STEP]
        off = [n for n in stepped if self.cpus[n].get_mp_state() == MpState.STOPPED]
        if off:  # it would step when another vCPU turns it on
            self._stops.append(Stop(off[0], Signal.TRAP))
            self._loop.call(self._stop)
            return
        for number in stepped:
            self._hidden[number] = stepping.hide_interrupts(self.cpus[number], self.read_physical)
        everyone = actions.keys() >= {cpu.id for cpu in self.cpus}
        machine.choose(None if everyone else frozenset(actions))
        machine.resume()

    def interrupt(self) -> None:
        """Stop all vCPUs."""
        if self._is_running:
            self._stops.append(Stop(0, Signal.INT))
            self._stop()

    def _stop(self) -> None:
        """Stop every vCPU and report the first reason; in the loop's thread."""
        if not self._is_running or not self._stops:
            return
        self._is_running = False
        machine = self._machine()
        machine.pause()
        if machine.has_ended:
            return
        self._complete(machine.vcpus)
        for number, hidden in self._hidden.items():
            stepping.show_interrupts(self.cpus[number], hidden)
        self._hidden.clear()
        self._on_stop(self._stops[0])

    def _complete(self, vcpus: Iterable[MachineVcpu]) -> None:
        """Complete the accesses for which KVM_RUN has returned: see Vcpu.kick()."""
        if self._machine().has_started and not self._machine().has_ended:
            for vcpu in vcpus:
                vcpu.kick()
                vcpu.run()

    def _apply(self, actions: Mapping[int, Action]) -> None:
        """Tell KVM the points, and which vCPUs step."""
        breakpoints = [breakpoint_registers(p) for p in self._hardware if p.kind is Kind.HARDWARE]
        watchpoints = [
            watchpoint_registers(p) for p in self._hardware if p.kind is not Kind.HARDWARE
        ]
        control = GUESTDBG_USE_HW if self._hardware else 0
        control |= GUESTDBG_USE_SW_BP if self._patches else 0
        for vcpu in self.cpus:
            own = control
            own |= GUESTDBG_SINGLESTEP if actions.get(vcpu.id) is Action.STEP else 0
            vcpu.set_guest_debug(
                own | GUESTDBG_ENABLE if own else 0,
                breakpoints=breakpoints,
                watchpoints=watchpoints,
            )

    # Points

    def insert(self, point: Point, cpu: Cpu) -> None:
        """Insert a breakpoint or watchpoint."""
        if point.kind is Kind.SOFTWARE:
            self._patch(point, cpu)
            return
        if point in self._hardware:
            return
        is_break = point.kind is Kind.HARDWARE
        if not is_break:
            watchpoint_registers(point)
        cap = Cap.GUEST_DEBUG_HW_BPS if is_break else Cap.GUEST_DEBUG_HW_WPS
        has = self._machine().board.vm.check_extension(cap)
        used = sum((one.kind is Kind.HARDWARE) == is_break for one in self._hardware)
        if used >= has:
            raise VmmError(f"KVM has {has} hardware {'break' if is_break else 'watch'}points")
        self._hardware.append(point)

    def _patch(self, point: Point, cpu: Cpu) -> None:
        if point.length != len(BRK) or point.address % len(BRK):
            raise VmmError("a software breakpoint replaces one A64 instruction")
        gpa = translate(point.address, regime_of(cpu), self.read_physical).address
        if gpa not in self._patches:
            original = self.read_physical(gpa, len(BRK))
            self._write(gpa, BRK)
            self._patches[gpa] = Patch(point, original)
            self._machine().breakpoints = len(self._patches)

    def remove(self, point: Point) -> None:
        """Remove a point, if it is there."""
        if point in self._hardware:
            self._hardware.remove(point)
        for gpa, patch in list(self._patches.items()):
            if patch.point == point:
                del self._patches[gpa]
                self._write(gpa, patch.original)
        self._machine().breakpoints = len(self._patches)

    # Debug exits

    def _on_debug(self, vcpu: MachineVcpu, leave: Exit) -> None:
        """Handle a debug exit, in the vCPU's thread."""
        stop = self._cause(vcpu, leave)
        if stop is not None:
            self._machine().hold(vcpu.id)
            self._loop.call(lambda: self._report(stop))

    def _report(self, stop: Stop) -> None:
        self._stops.append(stop)
        self._stop()

    def _cause(self, vcpu: MachineVcpu, leave: Exit) -> Stop | None:
        """Return why a vCPU stops; None if it continues."""
        syndrome = leave.fields["hsr"]
        cause = syndrome >> EC_SHIFT & 0x3F
        if cause == WATCHPOINT:
            return Stop(vcpu.id, Signal.TRAP, self._watched(leave.fields["far"]))
        if cause == BREAKPOINT:
            return Stop(vcpu.id, Signal.TRAP, "hwbreak")
        if cause == STEP:
            return Stop(vcpu.id, Signal.TRAP)
        pc = vcpu.get_one_reg(regs.PC)
        with contextlib.suppress(VmmError):
            if translate(pc, regime_of(vcpu), self._read_patched).address in self._patches:
                return Stop(vcpu.id, Signal.TRAP, "swbreak")
        guestbrk.deliver(vcpu, syndrome)
        return Stop(vcpu.id, Signal.TRAP) if vcpu.id in self._hidden else None

    def _read_patched(self, gpa: int, length: int) -> bytes:
        """Read memory as it is; safe in every thread."""
        return bytes(self._machine().board.addressable.view(gpa, length))

    def _watched(self, address: int) -> str:
        """Return the reason for a watchpoint at an accessed address: that of the nearest one."""
        points = [point for point in self._hardware if point.kind in NAMES]
        if not points:
            return ""

        def distance(point: Point) -> int:
            return max(point.address - address, address - point.address - point.length + 1, 0)

        nearest = min(points, key=distance)
        inside = nearest.address <= address < nearest.address + nearest.length
        return f"{NAMES[nearest.kind]}:{address if inside else nearest.address:x}"

    # The end

    def detach(self) -> None:
        """Leave the VM as it was: without breakpoints, and running if it ran."""
        self._release()
        if not self._was_paused and not self._machine().has_ended:
            self._machine().resume()

    def _release(self) -> None:
        machine = self._machine()
        if not machine.has_ended:
            machine.pause()
            if self._is_running:
                self._complete(machine.vcpus)
            for number, hidden in self._hidden.items():
                stepping.show_interrupts(self.cpus[number], hidden)
        self._hidden.clear()
        self._is_running = False
        if machine.has_ended:
            self._patches.clear()
        for patch in list(self._patches.values()):
            self.remove(patch.point)
        self._hardware.clear()
        if not machine.has_ended:
            self._apply({})
        machine.debug(None)
        machine.holder = ""
        os.close(self._scratch)

    def monitor(self, words: Sequence[str], cpu: Cpu) -> Iterable[str]:
        """Run a command for the VM."""
        return run_command(self._machine(), self.cpus[cpu.id], words, self._quit)
