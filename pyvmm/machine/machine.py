"""A virtual machine: a Config becomes hardware, the hardware runs, and the run ends.

    with Machine(Config(image=Path("guest.elf"), vcpus=2)) as vm:
        code = vm.run()

``run`` returns the guest's exit code: 0 for a power-off or a reset, N for a write of N to the
exit register. Every other end of a guest raises an error.
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
from pyvmm.errors import EXIT_OK, KvmError, TimeoutExpired, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.system import System
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.machine.board import Board, Hooks, RtcAlarm, build, uart_lines
from pyvmm.machine.console import Console
from pyvmm.machine.counts import Counts
from pyvmm.machine.exits import ExitHandler, OnDebug, OnUnclaimed
from pyvmm.machine.fastpath import FastPaths
from pyvmm.machine.plan import Feature, Plan
from pyvmm.machine.resizing import Resizing
from pyvmm.machine.runner import Runner
from pyvmm.machine.vcpus import MachineVcpu, read_counter
from pyvmm.memory.ram import GuestMemory
from pyvmm.terminal.terminals import Terminals

if TYPE_CHECKING:
    # Imported lazily: rarely used.
    from pyvmm.machine.diagnosis.rules import Look
    from pyvmm.machine.dirty import DirtyPages
    from pyvmm.machine.trace import ExitTrace
    from pyvmm.terminal.direct import Direct

KVM = "/dev/kvm"
STDOUT = 1

SILENT_S = 5.0  # without output, before pyvmm looks for the reason


def write_to_stdout(data: bytes) -> None:
    """Write what the guest prints to standard output; the default."""
    while data:
        data = data[os.write(STDOUT, data) :]


def _do_nothing(*_: object) -> None:
    """Do nothing: the default of optional callbacks."""


class Restorer(AbstractContextManager["Restorer"], Protocol):
    """The saved machine that a new one continues: snapshot.restorer.Restorer is one."""

    def build(self, system: System, config: Config, hooks: Hooks, undo: ExitStack) -> Board:
        """Make the hardware with the saved state in it."""

    def virtual_now(self) -> int:
        """Return the value the guest's virtual counter will have when the guest resumes."""

    def start_clock(self, vcpu: Vcpu) -> None:
        """Set the guest's counters, just before its vCPUs run."""

    def verify(self, on_damage: Callable[[VmmError], None]) -> None:
        """Check the lazily read memory, in the background."""


class Machine(Closing):
    """A virtual machine; a context manager that takes it apart again.

    The constructor makes everything, but runs nothing: an impossible request is refused before
    the guest's first instruction. In a vCPU's own thread only ``stop`` is safe; in other threads
    all methods are. ``console`` sends input, ``terminals`` has the paths of the Config's ttys,
    ``counts`` the statistics, and ``resizing`` changes the guest's memory size.

    Raises:
        HostError: the host's KVM cannot provide what the Config requests.
        ImageError: the image cannot be booted.
    """

    def __init__(
        self,
        config: Config,
        output: Callable[[bytes], None] = write_to_stdout,
        *,
        set_blocking: Callable[[bool], None] = _do_nothing,
        direct: Direct | None = None,
        on_unclaimed: OnUnclaimed | None = None,
        log: Callable[[str], None] = _do_nothing,
        restorer: Restorer | None = None,
        trace: ExitTrace | None = None,
        kvm: str = KVM,
    ) -> None:
        """Make the machine: from its image, or in the state that ``restorer`` has.

        These are called in the vCPU's thread: ``output`` with the guest's console output,
        ``on_unclaimed`` with each access to an address without a device, ``log`` with a line about
        a faulty guest driver.
        ``set_blocking`` is called with False before the vCPUs stop or pause: from then on
        ``output`` must return at once. It is called with True when they run again. A virtio
        console's output may go to ``direct`` instead (terminal.stdio.Output.direct). ``trace`` gets
        every exit.
        """
        self.config = config
        self.before_time_out: Callable[[], None] | None = None  # called while paused
        with ExitStack() as undo:
            self._restorer = undo.enter_context(restorer) if restorer is not None else None
            system = undo.enter_context(System.open(kvm))
            self.terminals = undo.enter_context(Terminals(config.ttys))
            outputs = self.terminals.outputs
            hooks = Hooks(
                output=outputs.get(0, output),
                terminals=outputs,
                on_exit=lambda code: self._runner.end(code),
                fail=lambda error: self._runner.end(error),
                log=log,
            )
            make = restorer.build if restorer is not None else build
            self.board: Board = make(system, config, hooks, undo)
            self.console = Console(self.board.console, self.board.uarts)
            self._dirty: DirtyPages | None = None
            self.resizing = Resizing(
                self.board.plan.memory, (transport.device for transport in self.board.virtio)
            )
            self._set_output_blocking = set_blocking
            self._fast: FastPaths | None = None
            if config.fast_mmio:
                if config.console == "virtio" and 0 in config.ttys:
                    direct = self.terminals.direct(0)
                self._fast = self._make_fast_paths(undo, on_unclaimed, direct)
            self._exits = ExitHandler(
                self.board,
                self._fast,
                on_unclaimed,
                end=lambda result: self._runner.end(result),
                has_ended=lambda: self._runner.has_ended,
            )
            self.counts = Counts(list(self._exits.counts.values()), self.board.stats, self._fast)
            self._log = log
            self.has_said_why = False  # see say_why
            self.holder = ""  # the debugger that has stopped the guest, in words
            self.breakpoints = 0  # instructions of the guest that a debugger has replaced
            self.resets = 0  # of the guest, in earlier machines of the same run
            self._follows_silence = False  # the machine before this one had no output
            self._virtual_time: int | None = None  # the counter of a paused guest
            self._started = False
            self._pausing = threading.RLock()  # held while vCPUs are accessed: none may run then
            step = self._exits.step
            if trace is not None:
                step = functools.partial(self._exits.traced_step, trace)
            self._runner = Runner(self.board.vcpus, step, self._ended, config.vcpu_affinity)
            undo.callback(self._runner.close)
            self._undo = undo.pop_all()

    def _make_fast_paths(
        self, undo: ExitStack, on_unclaimed: OnUnclaimed | None, direct: Direct | None
    ) -> FastPaths:
        board = self.board
        fast = FastPaths(
            board.vm,
            board.vcpus,
            # With the devices' windows above RAM: a write to read-only memory must reach Python.
            [*(region for region, _ in board.bus), *board.plan.windows],
            board.uarts,
            board.virtio,
            board.rtc,
            direct,
            uart_lines(),
            complete_unclaimed=on_unclaimed is None,
            # When a slot goes, KVM unmaps all that a guest hypervisor has mapped for its own
            # guests, 1 GiB after the other of all its address bits: minutes in an emulated host.
            # Source: Linux, arch/arm64/kvm/mmu.c, kvm_arch_flush_shadow_memslot()
            pages=Feature.EL2 not in board.plan.features,
        )
        undo.callback(fast.close)
        return fast

    def close(self) -> None:
        """End a run and release every resource; idempotent."""
        self._undo.close()

    @property
    def was_reset(self) -> bool:
        """Whether the guest ended the run by asking for a reset."""
        return self._exits.was_reset

    @property
    def plan(self) -> Plan:
        """The vCPUs, memory, address bits and vector lengths that the host gave the Config."""
        return self.board.plan

    def debug(self, on_debug: OnDebug | None) -> None:
        """Handle debug exits (KVM_EXIT_DEBUG) by a function, in the vCPU's thread; None: no more.

        While the guest is paused.
        """
        self._exits.on_debug = on_debug
        if on_debug is None:
            self._runner.release()
            self._runner.choose(None)

    def hold(self, vcpu_id: int) -> None:
        """Park a vCPU in its own thread until ``choose``, even if the guest is resumed."""
        self._runner.hold(vcpu_id)

    def choose(self, vcpu_ids: frozenset[int] | None) -> None:
        """Choose which vCPUs of a paused guest run when it is resumed: these, or all."""
        self._runner.release()
        self._runner.choose(vcpu_ids)

    def reset(self) -> None:
        """End the run as the guest's own reset does."""
        if not self.has_ended:
            self._exits.was_reset = True
        self.stop()

    @property
    def vls(self) -> VlSet:
        """The SVE vector lengths of every vCPU in bits, as KVM reads them back; empty: no SVE."""
        return self.board.plan.vls

    @property
    def image(self) -> LoadedImage:
        """The loaded image, and where it is.  Raises: VmmError, on a restored machine."""
        if self.board.image is None:
            raise VmmError("this machine was restored from a snapshot: no image was loaded")
        return self.board.image

    @property
    def dtb(self) -> bytes:
        """The guest's device tree blob; empty on a restored machine."""
        return self.board.dtb

    @property
    def memory(self) -> GuestMemory:
        """The guest's RAM."""
        return self.board.memory

    @property
    def vcpus(self) -> tuple[MachineVcpu, ...]:
        """The vCPUs. Access their registers only while they are paused or have ended.

        Registers have names and typed values: ``vm.vcpus[0].z[3].s.signed``, see RegisterView.
        """
        return tuple(self.board.vcpus)

    @property
    def ended_fd(self) -> int:
        """A descriptor that becomes readable when the last vCPU has stopped."""
        return self._runner.ended_fd

    def start(self) -> None:
        """Start the vCPUs and return at once."""
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
        """Stop the guest between two instructions; return when every vCPU is parked.

        The virtio devices complete their requests first. The guest's virtual counter stops too:
        no time passes for the guest, and its timers fire neither late nor all at once. The
        real-time clock continues.
        """
        with self._pausing:
            self._set_blocking(False)
            self._runner.pause()
            for transport in self.board.virtio:
                transport.device.drain()
            self._flush()
            if self._virtual_time is None:
                self._virtual_time = self._read_virtual_time()

    def resume(self) -> None:
        """Resume a paused guest."""
        with self._pausing:
            if self._virtual_time is not None:
                # The counter belongs to the VM: any vCPU sets it.
                self.vcpus[0].set_one_reg(regs.TIMER_CNT, self._virtual_time)
                self._virtual_time = None
            for transport in self.board.virtio:
                transport.device.proceed()
            self._release()

    def _release(self) -> None:
        """Let parked vCPUs run."""
        self._set_blocking(True)
        if self._runner.has_ended:  # a run that has just ended must not block again
            self._set_blocking(False)
        self._runner.resume()

    def _read_virtual_time(self) -> int:
        """Return the guest's counter; before a restored guest starts, its saved counter."""
        if self._restorer is not None and not self._started:
            return self._restorer.virtual_now()
        return read_counter(self.vcpus[0], self.plan)

    @property
    def has_ended(self) -> bool:
        """Whether the run is over."""
        return self._runner.has_ended

    @property
    def has_started(self) -> bool:
        """Whether the vCPUs have been started."""
        return self._started

    @property
    def is_paused(self) -> bool:
        """Whether the guest is paused."""
        return self._virtual_time is not None

    @property
    def virtual_time(self) -> int:
        """The virtual counter of a paused guest.

        Raises: VmmError, while the guest runs.
        """
        if self._virtual_time is None:
            raise VmmError("the guest runs: its virtual counter is only read while it is paused")
        return self._virtual_time

    @property
    def dirty(self) -> DirtyPages:
        """The pages of RAM written since a snapshot; for saves, while paused."""
        if self._dirty is None:
            from pyvmm.machine.dirty import DirtyPages

            board = self.board
            self._dirty = DirtyPages(board.memory, board.slots, board.virtio)
        return self._dirty

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the guest for the block; a guest that was paused before stays paused."""
        with self._pausing:
            before = self.is_paused
            self.pause()
            try:
                yield
            finally:
                if not before:
                    self.resume()

    def devices(self) -> list[dict[str, Any]]:
        """Describe each virtio device and its state, by slot, as JSON values."""
        return [
            {"region": layout.virtio(slot).name, **transport.device.describe()}
            for slot, transport in enumerate(self.board.virtio)
        ]

    def stop(self, result: int | VmmError = EXIT_OK) -> None:
        """End the run with that exit code or error; the first result counts."""
        self._runner.end(result)

    def result(self) -> int:
        """Return the exit code of a run that has ended, or raise the error that ended it."""
        self._flush()
        return self._runner.result()

    def run(self, loop: Loop | None = None, deadline: float | None = None) -> int:
        """Run the guest to its end, and ``loop`` with its devices' input in this thread.

        ``deadline`` is the monotonic time at which the Config's time runs out, if it began earlier.

        Raises:
            GuestError: the guest did something a machine cannot continue from.
            TimeoutExpired: the Config's time ran out first, perhaps before this machine's start.
        """
        if loop is None:
            with Loop() as own:
                return self.run(own, deadline)
        if deadline is not None and deadline <= time.monotonic():
            self._report_reset()
            if self.before_time_out is not None:
                self.before_time_out()
            self.stop(self._expired())
            return self.result()
        with ExitStack() as undo:
            undo.callback(RtcAlarm(self.board.rtc, loop).stop)
            if self.board.virtio:
                from pyvmm.machine.devices import Doorbells

                undo.callback(Doorbells(self.board.vm, self.board.virtio, loop).stop)
            undo.callback(self.terminals.attach(self.console, loop))
            loop.watch(self.ended_fd, loop.stop)
            undo.callback(loop.unwatch, self.ended_fd)
            if self.config.timeout_s is not None:
                due = loop.after(self._left_s(deadline), self._time_out)
                undo.callback(loop.cancel, due)
            look = loop.after(SILENT_S, self._look_if_silent)
            undo.callback(loop.cancel, look)
            self.start()
            loop.run()
        return self.result()

    def _ended(self) -> None:
        """Wake all waiting vCPU threads, because the run has ended."""
        for transport in self.board.virtio:
            transport.device.stop()
        self._set_blocking(False)

    def _flush(self) -> None:
        """Output everything the guest has sent; call it while no vCPU runs."""
        if self._fast is not None:
            self._fast.flush()

    def _set_blocking(self, blocking: bool) -> None:
        """Set whether output to slow readers blocks the vCPUs."""
        self.terminals.set_blocking(blocking)
        self._set_output_blocking(blocking)

    def say_why(self, *, sure: bool = False) -> None:
        """Log one line about why the guest makes no progress, if pyvmm can see it; once a run.

        With ``sure`` the line must name a cause. Without ``sure`` it can also be a description of a
        guest without output. Stops the vCPUs for moments; do not call it in a vCPU's thread.
        """
        from pyvmm.machine.diagnosis.looking import explain

        if self.has_said_why or not self._pausing.acquire(blocking=False):
            return  # another thread has stopped the guest
        try:
            if self.is_paused or (self.has_ended and not self.was_reset):
                return
            why = explain(self._look, lambda: self.is_silent, sure=sure)
        except KvmError:  # KVM has no such register: nothing is known
            return
        finally:
            self._pausing.release()
        if why is not None and (not self.has_ended or self.was_reset):
            self.has_said_why = True
            self._log(why)

    @property
    def is_silent(self) -> bool:
        """Whether a guest that was booted, not restored, has sent no output."""
        return self._restorer is None and not any(
            device.has_transmitted for device in (*self.board.uarts, self.board.console)
        )

    def follow(self, before: Machine) -> None:
        """Continue the run of a machine that was reset: its sizes, and what was logged about it."""
        self.resizing.adopt(before.resizing)
        self.resets = before.resets + 1
        self.has_said_why = before.has_said_why
        self._follows_silence = before.is_silent

    def _report_reset(self) -> None:
        """Log that the last machine was reset without output, unless another line says more."""
        from pyvmm.machine.diagnosis.rules import resets_silently

        if self._follows_silence and not self.has_said_why:
            self._log(resets_silently(self.resets - 1))

    def _look(self) -> Look:
        """Stop the vCPUs, read them, and let them run; the guest's clocks run on."""
        from pyvmm.machine.diagnosis.observation import look

        kernel = self.counts.kernel()
        self._set_blocking(False)
        self._runner.pause()
        try:
            seen = look(self.board, self.counts.exits(), kernel)
            return seen.replace(resets=self.resets, was_reset=self.was_reset)
        finally:
            self._release()

    def _look_if_silent(self) -> None:
        if self.is_silent:
            self.say_why(sure=True)

    def _left_s(self, deadline: float | None) -> float:
        assert self.config.timeout_s is not None
        return self.config.timeout_s if deadline is None else deadline - time.monotonic()

    def _time_out(self) -> None:
        """End the run. If the guest resets meanwhile and starts again, the new machine ends."""
        self.say_why()
        if self.before_time_out is None or self.was_reset:
            self.stop(self._expired())
            return
        with self.paused():  # no instruction runs between a save and the end
            self.before_time_out()
            self.stop(self._expired())

    def _expired(self) -> TimeoutExpired:
        return TimeoutExpired(f"the guest did not end within {self.config.timeout_s:g} s")
