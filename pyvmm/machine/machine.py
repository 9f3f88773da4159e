"""A virtual machine: a Config becomes hardware, the hardware runs, and the run has an end.

    with Machine(Config(image=Path("guest.elf"), vcpus=2)) as vm:
        code = vm.run()

``run`` returns the guest's exit code: 0 for a power-off or a reset, N for a write of N to the
exit register. Everything else a guest can end with is an error, raised.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from pyvmm import layout
from pyvmm.arm64.vl import VlSet
from pyvmm.base.closing import Closing
from pyvmm.base.loop import Loop
from pyvmm.boot.image import LoadedImage
from pyvmm.config import Config
from pyvmm.devices.bus import UNCLAIMED
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.errors import EXIT_OK, KvmError, TimeoutExpired, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit, reason_name
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import ExitReason, SystemEvent
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.machine.alarm import Alarm
from pyvmm.machine.board import Board, Hooks, build
from pyvmm.machine.counts import ExitCounts, totals
from pyvmm.machine.edges import explain, refuse_write
from pyvmm.machine.fastpath import FastPaths
from pyvmm.machine.outcome import is_system_event, outcome
from pyvmm.machine.plan import Plan
from pyvmm.machine.resizing import Resizing
from pyvmm.machine.runner import Runner
from pyvmm.machine.vcpus import MachineVcpu
from pyvmm.memory.ram import GuestMemory
from pyvmm.terminal.terminals import Terminals

if TYPE_CHECKING:
    # Imported lazily: rarely used.
    from pyvmm.devices.virtio.console import VirtioConsole
    from pyvmm.machine.dirty import DirtyPages
    from pyvmm.machine.trace import ExitTrace

KVM = "/dev/kvm"
STDOUT = 1

# What an access that no device answers was; only with Machine(on_unclaimed=...).
Unclaimed = Callable[[int, Exit], None]


def write_to_stdout(data: bytes) -> None:
    """Where the console of a machine goes when nobody says otherwise."""
    while data:
        data = data[os.write(STDOUT, data) :]


def _do_nothing(*_: object) -> None:
    """Stands for a callback nobody gave."""


class Restorer(AbstractContextManager["Restorer"], Protocol):
    """The saved machine that a new one continues: snapshot.restorer.Restorer is one."""

    def build(self, system: System, config: Config, hooks: Hooks, undo: ExitStack) -> Board:
        """Make the hardware with the saved state in it."""

    def virtual_now(self) -> int:
        """Return what the guest's virtual counter will be when the guest resumes."""

    def start_clock(self, vcpu: Vcpu) -> None:
        """Set the guest's counters, just before its vCPUs run."""

    def verify(self, on_damage: Callable[[VmmError], None]) -> None:
        """Check in the background the memory that is read lazily."""


class Machine(Closing):
    """A virtual machine; a context manager that takes it apart again.

    Making it does everything but running it, so that whatever cannot work is refused before the
    guest's first instruction. All methods are safe from any thread but a vCPU's; there only
    ``stop`` is. ``terminals`` has the paths of the Config's ttys, ``resizing`` is what can be done
    about the guest's memory.

    Raises:
        HostError: the host's KVM cannot give what the Config asks.
        ImageError: the image cannot be booted.
    """

    def __init__(
        self,
        config: Config,
        output: Callable[[bytes], None] = write_to_stdout,
        *,
        let_go: Callable[[bool], None] = _do_nothing,
        on_unclaimed: Unclaimed | None = None,
        log: Callable[[str], None] = _do_nothing,
        restorer: Restorer | None = None,
        trace: ExitTrace | None = None,
        kvm: str = KVM,
    ) -> None:
        """Make the machine: from its image, or in the state that ``restorer`` has.

        ``output`` gets what the guest writes to its console, ``on_unclaimed`` an access that no
        device answers, ``log`` a line about a driver of the guest's that is broken; all in the
        vCPU's thread. ``let_go`` is called with True when the vCPUs are to stop, for good or for
        a pause, and must then let go an ``output`` that waits; with False when they run again.
        ``trace`` gets every exit.
        """
        self.config = config
        self.before_time_out: Callable[[], None] = _do_nothing  # called before time ends the run
        self.was_reset = False  # the run ended by the guest's wish to start anew
        self._on_unclaimed = on_unclaimed
        with ExitStack() as undo:
            self._restorer = undo.enter_context(restorer) if restorer is not None else None
            system = undo.enter_context(System.open(kvm))
            self.terminals = undo.enter_context(Terminals(config.ttys))
            outputs = self.terminals.outputs
            hooks = Hooks(
                output=outputs.get(0, output),
                terminals=outputs,
                on_exit=lambda code: self._runner.end(code),
                log=log,
            )
            make = restorer.build if restorer is not None else build
            self.board: Board = make(system, config, hooks, undo)
            self._bus = self.board.bus
            self._dirty: DirtyPages | None = None
            self.resizing = Resizing(
                self.board.plan.memory, (transport.device for transport in self.board.virtio)
            )
            self._let_go = let_go
            self._fast = self._make_fast_paths(undo) if config.fast_mmio else None
            self._counts = {vcpu.id: ExitCounts() for vcpu in self.board.vcpus}
            self._virtual_time: int | None = None  # the counter of a guest that is paused
            self._started = False
            self._pausing = threading.RLock()  # held while vCPUs are touched: none may run then
            step = self._step if trace is None else functools.partial(self._traced_step, trace)
            self._runner = Runner(self.board.vcpus, step, self._ended, config.vcpu_affinity)
            undo.callback(self._runner.close)
            self._undo = undo.pop_all()

    def _make_fast_paths(self, undo: ExitStack) -> FastPaths:
        board = self.board
        fast = FastPaths(
            board.vm,
            board.vcpus,
            # Devices' windows above RAM too: what is written where memory is read-only is told.
            [*(region for region, _ in board.bus), *board.plan.windows],
            board.uarts,
            board.virtio,
            complete_unclaimed=self._on_unclaimed is None,
        )
        undo.callback(fast.close)
        return fast

    def close(self) -> None:
        """End the run, if there is one, and give everything back; idempotent."""
        self._undo.close()

    @property
    def plan(self) -> Plan:
        """What the Config came to on this host: vCPUs, memory, address bits, vector lengths."""
        return self.board.plan

    @property
    def vls(self) -> VlSet:
        """The SVE vector lengths of every vCPU in bits, as KVM reads them back; empty: no SVE."""
        return self.board.plan.vls

    @property
    def image(self) -> LoadedImage:
        """What was loaded, and where.  Raises: VmmError, on a restored machine."""
        if self.board.image is None:
            raise VmmError("this machine was restored from a snapshot: no image was loaded")
        return self.board.image

    @property
    def dtb(self) -> bytes:
        """The device tree blob the guest gets; empty on a restored machine."""
        return self.board.dtb

    @property
    def memory(self) -> GuestMemory:
        """The guest's RAM."""
        return self.board.memory

    @property
    def vcpus(self) -> tuple[MachineVcpu, ...]:
        """The vCPUs; theirs are the registers, while they are paused or have ended.

        By name, as typed values: ``vm.vcpus[0].z[3].s.signed``, see RegisterView.
        """
        return tuple(self.board.vcpus)

    @property
    def ended_fd(self) -> int:
        """A descriptor that can be read when no vCPU runs any more and ``result`` is there."""
        return self._runner.ended_fd

    def send(self, data: bytes, terminal: int = 0) -> int:
        """Type on the guest's console, or UART 1 to 3; returns how many bytes had room."""
        return self._terminal(terminal).receive(data)

    def send_break(self) -> None:
        """Put a break on the guest's console, as Linux takes for its SysRq key.

        Raises: VmmError, where the console cannot have one, or the guest has left no room.
        """
        console = self.board.console
        if not isinstance(console, Uart8250):
            raise VmmError(
                "a virtio console has no break",
                hint="use --console serial; or type Ctrl-O, which Linux's hvc takes for one",
            )
        if not console.receive_break():
            raise VmmError("the guest reads nothing from its console: there is no room for a break")

    def on_room(self, callback: Callable[[], None], terminal: int = 0) -> None:
        """Say what to call, from any thread, when ``send`` has room again after it had none."""
        self._terminal(terminal).on_room = callback

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size of its console's terminal; a serial line has no way to."""
        if not isinstance(self.board.console, Uart8250):
            self.board.console.resize(columns, rows)

    def _terminal(self, number: int) -> Uart8250 | VirtioConsole:
        return self.board.uarts[number] if number else self.board.console

    def start(self) -> None:
        """Let the vCPUs go; returns at once."""
        with self._pausing:
            self._started = True
            if self._restorer is not None:
                for transport in self.board.virtio:
                    transport.resume()
                if not self.is_paused:
                    self._restorer.start_clock(self.vcpus[0])
                self._restorer.verify(self.stop)
            self._runner.start()

    def pause(self) -> None:
        """Stop the guest between two instructions; returns when every vCPU is parked.

        What virtio devices were asked for by then is done by then too.
        Its virtual counter stops too, so that no time passes for the guest: its timers neither
        fire late nor all at once afterwards.  The real-time clock goes on.
        """
        with self._pausing:
            self._hurry(True)
            self._runner.pause()
            for transport in self.board.virtio:
                transport.device.drain()
            self._flush()
            if self._virtual_time is None:
                self._virtual_time = self._read_virtual_time()

    def resume(self) -> None:
        """Let a paused guest go on."""
        with self._pausing:
            if self._virtual_time is not None:
                # One vCPU's counter is the whole VM's.
                self.vcpus[0].set_one_reg(regs.TIMER_CNT, self._virtual_time)
                self._virtual_time = None
            self._hurry(False)
            if self._runner.has_ended:  # just now, and nobody is to wait for room any more
                self._hurry(True)
            self._runner.resume()

    def _read_virtual_time(self) -> int:
        """Return the guest's counter; a restored guest's stands still until it starts."""
        if self._restorer is not None and not self._started:
            return self._restorer.virtual_now()
        return self.vcpus[0].get_one_reg(regs.TIMER_CNT)

    @property
    def has_ended(self) -> bool:
        """Whether the run is over."""
        return self._runner.has_ended

    @property
    def has_started(self) -> bool:
        """Whether the vCPUs were let go once."""
        return self._started

    @property
    def is_paused(self) -> bool:
        """Whether the guest was paused, and not resumed since."""
        return self._virtual_time is not None

    @property
    def virtual_time(self) -> int:
        """The virtual counter of a paused guest, which stands still.

        Raises: VmmError, while the guest runs.
        """
        if self._virtual_time is None:
            raise VmmError("the guest's virtual counter is read while the guest is paused")
        return self._virtual_time

    @property
    def dirty(self) -> DirtyPages:
        """Which pages of RAM were written to since a snapshot; for saves, while paused."""
        if self._dirty is None:
            from pyvmm.machine.dirty import DirtyPages

            board = self.board
            self._dirty = DirtyPages(board.memory, board.slots, board.virtio)
        return self._dirty

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Have the guest paused meanwhile, whatever others ask; one that was stays so."""
        with self._pausing:
            before = self.is_paused
            self.pause()
            try:
                yield
            finally:
                if not before:
                    self.resume()

    def exit_counts(self) -> list[dict[str, int]]:
        """How often each vCPU left KVM_RUN, by what caused it, as "uart0 read"."""
        counts = [self._counts[vcpu.id].by_cause() for vcpu in self.board.vcpus]
        if self._fast is None:
            return counts
        return [totals(pair) for pair in zip(counts, self._fast.completed(), strict=True)]

    def bytes_without_exit(self) -> dict[str, int]:
        """How many bytes each UART was given without an exit to Python; some of C's made one."""
        return {} if self._fast is None else self._fast.bytes_sent()

    def kernel_counts(self) -> list[dict[str, int]]:
        """KVM's own statistics of each vCPU by its names; nothing before Linux 5.14."""
        return self.board.kernel_counts.read()

    def devices(self) -> list[dict[str, Any]]:
        """What each virtio device is and how it stands, by slot, as JSON has it."""
        return [
            {"region": layout.virtio(slot).name, **transport.device.describe()}
            for slot, transport in enumerate(self.board.virtio)
        ]

    def stop(self, outcome: int | VmmError = EXIT_OK) -> None:
        """End the run with that exit code or error, unless it has ended with another before."""
        self._runner.end(outcome)

    def result(self) -> int:
        """The exit code of a run that has ended; raises the error that ended it instead."""
        self._flush()
        return self._runner.result()

    def run(self, loop: Loop | None = None) -> int:
        """Run the guest to its end, and everything around it in ``loop``, in this thread.

        Raises:
            GuestError: the guest did what no machine can go on from.
            TimeoutExpired: the Config's time ran out first.
        """
        if loop is None:
            with Loop() as own:
                return self.run(own)
        with ExitStack() as undo:
            undo.callback(Alarm(self.board.rtc, loop).stop)
            if self.board.virtio:
                from pyvmm.machine.virtio import Kicks

                undo.callback(Kicks(self.board.vm, self.board.virtio, loop).stop)
            undo.callback(self.terminals.attach(self, loop))
            loop.watch(self.ended_fd, loop.stop)
            undo.callback(loop.unwatch, self.ended_fd)
            if self.config.timeout_s is not None:
                loop.after(self.config.timeout_s, self._time_out)
            self.start()
            loop.run()
        return self.result()

    def _ended(self) -> None:
        """The run has an outcome: let go of whatever a vCPU's thread may be busy with."""
        for transport in self.board.virtio:
            transport.device.stop()
        self._hurry(True)

    def _flush(self) -> None:
        """Output all that the guest has sent; while no vCPU runs."""
        if self._fast is not None:
            self._fast.flush()

    def _hurry(self, hurry: bool) -> None:
        """Let go whatever vCPUs wait for outside, or let them wait again."""
        self.terminals.let_go(hurry)
        self._let_go(hurry)

    def _time_out(self) -> None:
        self.before_time_out()
        self.stop(TimeoutExpired(f"the guest did not end within {self.config.timeout_s:g} s"))

    def _step(self, vcpu: Vcpu) -> None:
        """Run a vCPU to its next exit and deal with that; in the vCPU's thread."""
        self._handle(vcpu, self._run(vcpu))

    def _run(self, vcpu: Vcpu) -> Exit:
        try:
            return vcpu.run()
        except KvmError as error:
            raise explain(error, self.board.virtio) from error

    def _traced_step(self, trace: ExitTrace, vcpu: Vcpu) -> None:
        """The same, noted in a trace."""
        leave = self._run(vcpu)
        began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        try:
            self._handle(vcpu, leave)
        finally:
            trace.exit(vcpu.id, self._cause(leave), leave, began_ns)
            if self._fast is not None:
                trace.completed(vcpu.id, self._fast.completed_by(vcpu))

    def _cause(self, leave: Exit) -> str:
        """What exit_counts() calls it."""
        if leave.reason != ExitReason.MMIO:
            return reason_name(leave.reason)
        region, _ = self._bus.find(leave.address)
        return f"{region.name} {'write' if leave.is_write else 'read'}"

    def _handle(self, vcpu: Vcpu, leave: Exit) -> None:
        if vcpu.attention and self._fast is not None:
            self._fast.attend()
        counts = self._counts[vcpu.id]
        if leave.reason == ExitReason.MMIO:
            region, device = self._bus.find(leave.address)
            if region is UNCLAIMED:
                if refuse_write(vcpu, leave, self.board.virtio):
                    counts.writes["read-only memory"] += 1
                    return
                if self._on_unclaimed is not None:
                    self._on_unclaimed(vcpu.id, leave)
            offset = leave.address - region.base
            if leave.is_write:
                counts.writes[region.name] += 1
                device.mmio_write(offset, leave.length, leave.data)
            else:
                counts.reads[region.name] += 1
                vcpu.set_mmio_data(device.mmio_read(offset, leave.length))
            return
        counts.others[leave.reason] += 1
        if leave.reason == ExitReason.ARM_NISV and refuse_write(vcpu, leave, self.board.virtio):
            return
        if leave.reason != ExitReason.INTR:
            if not self._runner.has_ended:
                self.was_reset = is_system_event(leave, SystemEvent.RESET)
            self._runner.end(outcome(vcpu, leave))
