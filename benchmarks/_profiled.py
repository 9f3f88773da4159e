"""A run of pyvmm that measures its own parts; benchmarks/_profile_inside.py starts it.

Until it reports its results it imports only modules that Python loads anyway. Times are in ns of
the process's own CPU time, so waiting does not count.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

# The functions to measure, in the order of a run. If one calls another, the time counts for the
# callee alone. All other time is "the rest".
PHASES = (
    ("click reads the command line", "click.core", "Command.make_context"),
    ("options become a Config", "pyvmm.commands.run", "_config"),
    ("which host to run on", "pyvmm.commands.run", "run_here_or_forward"),
    ("signals and the loop", "pyvmm.base.loop", "Loop.__init__"),
    ("signals and the loop", "pyvmm.base.loop", "Loop.on_signal"),
    ("the VM's name and its socket", "pyvmm.commands._attached", "Claim.__init__"),
    ("control server, terminal, keys", "pyvmm.commands._attached", "Attached._attach"),
    ("/dev/kvm and the extension", "pyvmm.kvm.system", "System.open"),
    ("asking KVM what it can give", "pyvmm.machine.board", "read_limits"),
    ("the VM", "pyvmm.kvm.system", "System.create_vm"),
    ("guest memory", "pyvmm.memory.ram", "GuestMemory.__init__"),
    ("guest memory", "pyvmm.machine.slots", "MemorySlots.add"),
    ("vCPUs", "pyvmm.machine.board", "make_vcpus"),
    ("the GIC", "pyvmm.machine.board", "make_irqchip"),
    ("stolen time", "pyvmm.machine.board", "make_pvtime"),
    ("devices and the bus", "pyvmm.machine.board", "_make_uarts_and_rtc"),
    ("devices and the bus", "pyvmm.machine.board", "_make_bus"),
    ("KVM's statistics", "pyvmm.machine.board", "open_stats"),
    ("the image", "pyvmm.machine.board", "load_image"),
    ("the device tree", "pyvmm.machine.board", "machine_dtb"),
    ("registers to start with", "pyvmm.machine.board", "set_boot_registers"),
    ("fast paths of UARTs", "pyvmm.machine.machine", "Machine._make_fast_paths"),
    ("confinement", "pyvmm.commands._attached", "Attached._confine"),
    ("confinement: Landlock", "pyvmm.sandbox.landlock", "restrict"),
    ("confinement: seccomp", "pyvmm.sandbox.seccomp", "restrict"),
    ("the vCPUs' threads", "pyvmm.machine.runner", "Runner.start"),
)  # fmt: skip
REST = "the rest"
FIRST_RUN = "KVM_RUN to the guest's first exit"
INIT = b"pyvmm-bench: init"  # the output of a Linux guest's first program


class Phases:
    """The phase that runs now, and the time of each phase so far, in ns."""

    def __init__(self) -> None:
        self.taken = {REST: 0}
        self._turns = [REST]
        self._since = time.process_time_ns()
        self._over = False

    def end(self) -> int:
        """Stop counting, and return the time."""
        self.turn()
        self._over = True
        return self._since

    def turn(self) -> None:
        """Add the time since the last call to the current phase, and change the phase."""
        if self._over:
            return
        now = time.process_time_ns()
        title = self._turns[-1]
        self.taken[title] = self.taken.get(title, 0) + now - self._since
        self._since = now

    def reporting(self, title: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function, so that it reports when it begins and ends."""

        def timed(*args: Any, **options: Any) -> Any:
            self.turn()
            self._turns.append(title)
            try:
                return function(*args, **options)
            finally:
                self.turn()
                self._turns.pop()

        return timed


class Exits:
    """The time of a vCPU thread in exits to Python, by cause, and in KVM_RUN."""

    def __init__(self) -> None:
        self.causes: dict[str, list[int]] = {}
        self.in_kvm = 0

    def watch(self, handler: type[Any], vcpu: type[Any]) -> None:
        """Wrap both, so that they report."""
        handle, run = handler._handle, vcpu.run

        def timed_handle(self_: Any, vcpu: Any, leave: Any) -> None:
            before = time.thread_time_ns()
            handle(self_, vcpu, leave)
            found = self.causes.setdefault(self_._cause(leave), [0, 0])
            found[0] += 1
            found[1] += time.thread_time_ns() - before

        def timed_run(self_: Any) -> Any:
            before = time.thread_time_ns()
            leave = run(self_)
            self.in_kvm += time.thread_time_ns() - before
            return leave

        handler._handle, vcpu.run = timed_handle, timed_run


def run(out: str, modules: list[str], linux: bool, arguments: list[str]) -> None:
    """Run pyvmm to the first exit or to Linux's init, and write its parts' times to ``out``.

    ``modules`` are imported before, so that their time counts for no part.
    """
    import importlib

    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:  # the run that listed it only probed for it
            continue
    phases, exits = Phases(), Exits()
    # pyvmm imports a command's module by name: -X importtime does not report that.
    verb = phases.reporting("click makes the command", importlib.import_module)
    verb("pyvmm.commands.run")
    for title, module, path in PHASES:
        *owners, name = path.split(".")
        owner = sys.modules[module]
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, phases.reporting(title, getattr(owner, name)))
    _end_in_time(phases, exits, out, linux)
    from pyvmm import cli

    cli.main(arguments, owns_process=True)
    raise SystemExit("the guest has ended, and nothing was measured")


def _end_in_time(phases: Phases, exits: Exits, out: str, linux: bool) -> None:
    """Write what was found and end: at the first exit, or when Linux's init is there."""
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.machine.exits import ExitHandler
    from pyvmm.terminal.stdio import Output

    # The run confines itself before the end; pathlib is not loaded.
    file = open(out, "w", encoding="ascii")  # noqa: PTH123, SIM115 - see above
    enter, write = Vcpu.run, Output.write
    said = bytearray()
    found: dict[str, Any] = {}

    def end() -> None:
        import json
        import os

        found["phases"] = phases.taken
        found["exits"] = exits.causes
        found["in_kvm"] = exits.in_kvm
        found["end"] = time.process_time_ns()
        with file:
            json.dump(found, file)
        os._exit(0)

    def first_run(vcpu: Vcpu) -> Any:
        begin = phases.end()
        leave = enter(vcpu)
        Vcpu.run = enter  # type: ignore[method-assign]  # watched from outside
        found["first"] = time.process_time_ns()
        phases.taken[FIRST_RUN] = found["first"] - begin
        if not linux:
            end()
        exits.watch(ExitHandler, Vcpu)
        return leave

    def watched_write(self: Output, data: bytes) -> None:
        write(self, data)
        said.extend(data)
        if INIT in said:
            end()

    Vcpu.run = first_run  # type: ignore[method-assign, assignment]  # watched from outside
    Output.write = watched_write  # type: ignore[method-assign]  # watched from outside
