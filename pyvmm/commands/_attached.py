"""A machine attached to this process: its terminal, its signals, and its control socket."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm import host
from pyvmm.arm64 import vl
from pyvmm.base.loop import Loop
from pyvmm.base.records import Record
from pyvmm.base.units import show_size
from pyvmm.cli import echo, say
from pyvmm.config import Config
from pyvmm.control.sockets import Claim
from pyvmm.errors import EXIT_FAILED, EXIT_SIGNAL, HostError, VmmError
from pyvmm.kvm.exits import Exit
from pyvmm.machine.machine import Machine
from pyvmm.memory.ram import warn_of_size
from pyvmm.terminal.stdio import KEYS_HELP, Input, Key, Output, Terminal

if TYPE_CHECKING:
    from pyvmm.base.files import Replacement
    from pyvmm.commands._dtbdump import DtbDump
    from pyvmm.control.server import Server
    from pyvmm.debugger.server import DebugServer
    from pyvmm.debugger.symbols import Symbols
    from pyvmm.machine.trace import ExitTrace
    from pyvmm.snapshot.restorer import Restorer

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
STDIN, STDOUT = 0, 1


class Extras(Record):
    """The options of a run that its Config lacks; ``restorer`` continues a snapshot."""

    verbose: bool = False
    dump_dtb: Path | None = None
    debug_mmio: bool = False
    reboot: bool = False
    restorer: Restorer | None = None
    save_on_exit: Path | None = None
    trace: Path | None = None
    sandbox: bool = False
    gdb: str | None = None  # where to listen for debuggers; empty: at the default socket
    gdb_wait: bool = False
    symbols: Path | None = None  # names addresses in errors


def run_attached(config: Config, extras: Extras) -> int:
    """Run a machine on this process's terminal; write all output before returning."""
    with Output(STDOUT) as output:
        code = Attached(config, extras, output).run()
    if output.error is None:
        return code
    if output.error.errno in (errno.EPIPE, errno.EIO):  # the reader is gone
        return EXIT_SIGNAL + signal.SIGPIPE
    raise HostError(f"cannot write what the guest prints: {output.error.strerror}")


class Attached:
    """One run: a machine, and with --reboot its successors."""

    def __init__(self, config: Config, extras: Extras, output: Output) -> None:
        self._config = config
        self._extras = extras
        self._reboot = extras.reboot  # False once the user stops the VM
        self._code: int | None = None  # from a user who ended a VM that was rebooting
        self._output = output
        self._trace: ExitTrace | None = None
        self._dump: DtbDump | None = None
        self._say = functools.lru_cache(say)  # a line once, though each reboot logs it again
        self._saved: Replacement | None = None  # opened before the process is confined
        self._terminal = Terminal(STDIN)
        self._machine: Machine
        self._server: Server | None = None  # None before the control socket's first client
        self._debugger: DebugServer | None = None  # None before the first debugger
        self._symbols: Symbols | None = None
        self._keyboard: Input
        self._loop: Loop

    def run(self) -> int:
        """Run to the end; return the exit code."""
        _allow_descriptors()
        deadline = None
        if self._config.timeout_s is not None:
            deadline = time.monotonic() + self._config.timeout_s
        with contextlib.ExitStack() as undo:
            self._loop = undo.enter_context(Loop())
            self._open_outputs(undo)
            claim = undo.enter_context(Claim(self._config.name))
            with self._make(restorer=self._extras.restorer) as machine:
                self._attach(claim, undo)
                if self._extras.gdb is not None or self._extras.gdb_wait:
                    self._listen_for_debuggers(claim, undo)
                if self._extras.sandbox:
                    self._confine(claim)
                code = self._run(machine)
            while self._reboot and machine.was_reset:
                before = machine
                with self._make() as machine:
                    machine.follow(before)
                    if before.is_paused:  # the user paused it as it was reset
                        machine.pause()
                    self._keyboard.put_back(before.console.unread)
                    self._connect()
                    if self._debugger is not None:
                        self._debugger.adopt()
                    code = self._run(machine, deadline)
            return code if self._code is None else self._code

    def _run(self, machine: Machine, *deadline: float | None) -> int:
        """Run a machine to its end, and report that to a debugger, unless the guest reboots."""
        code = EXIT_FAILED
        try:
            code = machine.run(self._loop, *deadline)
            return code
        except VmmError as error:
            code = error.exit_code
            if self._symbols is not None:
                error.message = self._symbols.annotate(error.message)
            raise
        finally:
            if self._debugger is not None and not (self._reboot and machine.was_reset):
                self._debugger.close(code)

    def _listen_for_debuggers(self, claim: Claim, undo: contextlib.ExitStack) -> None:
        """Listen for debuggers before the process is confined; with --gdb-wait the guest waits."""
        from pyvmm.control.debugging import OUTER_VARIABLE, SUFFIX, DebugListener

        outer = os.environ.get(OUTER_VARIABLE)
        place = f"@{outer}" if outer else self._extras.gdb or str(claim.path.with_suffix(SUFFIX))
        listener = undo.enter_context(DebugListener(place))
        undo.callback(self._loop.unwatch, listener.socket.fileno())
        listener.serve(self._loop, lambda connection: self._debug_server().serve(connection))
        if not outer:
            say(f"for a debugger: target remote {listener.address}")
        if self._extras.gdb_wait:
            self._machine.holder = "`gdb_wait`"
            self._machine.pause()

    def _debug_server(self) -> DebugServer:
        """Return the server of debuggers, made at its first use."""
        if self._debugger is None:
            from pyvmm.debugger.server import DebugServer

            self._debugger = DebugServer(self._loop, lambda: self._machine, self._stop)
        return self._debugger

    def _open_outputs(self, undo: contextlib.ExitStack) -> None:
        """Open for writing the files that the options name, and read the symbols."""
        extras = self._extras
        if extras.symbols is not None:
            from pyvmm.debugger.symbols import Symbols

            self._symbols = Symbols.open(extras.symbols)
        trace, saved, dump = extras.trace, extras.save_on_exit, extras.dump_dtb
        if trace is None and saved is None and dump is None:
            return
        from pyvmm.base.files import PRIVATE, Replacement

        make = Replacement
        if extras.sandbox:
            from pyvmm.sandbox.outside import Outside as make
        if trace is not None:
            from pyvmm.machine.trace import ExitTrace

            self._trace = undo.enter_context(ExitTrace(trace, self._config.name, make))
        if saved is not None:
            self._saved = undo.enter_context(make(saved, PRIVATE, self._finish_saved))
        if dump is not None:
            from pyvmm.commands._dtbdump import DtbDump

            confined = extras.sandbox and extras.reboot  # the first tree is written before
            self._dump = undo.enter_context(DtbDump(dump, confined=confined))

    def _finish_saved(self, fd: int) -> None:
        """Mark the snapshot of --save-on-exit: in a confined run, outside its process."""
        from pyvmm.snapshot.writer import finish  # lazily: rarely used

        assert self._extras.save_on_exit is not None
        for line in finish(fd, self._extras.save_on_exit)[1]:
            say(line)

    def _make(self, restorer: Restorer | None = None) -> Machine:
        """Make the machine; describe and dump it where the options ask for that."""
        self._machine = Machine(
            self._config,
            self._output.write,
            set_blocking=self._output.set_blocking,
            direct=self._output.direct() if self._config.console == "virtio" else None,
            on_unclaimed=_show_unclaimed if self._extras.debug_mmio else None,
            log=self._say,
            restorer=restorer,
            trace=self._trace,
        )
        self._machine.before_time_out = self._save_on_exit if self._saved is not None else None
        try:
            for line in restorer.report.lines() if restorer is not None else ():
                say(f"not as it was saved: {line}")
            if self._dump is not None:
                self._dump.write(self._machine.dtb)
            if self._extras.verbose:
                for line in describe(self._machine, self._extras.restorer):
                    echo(f"pyvmm: {line}", err=True)
        except BaseException:
            self._machine.close()
            raise
        return self._machine

    def _confine(self, claim: Claim) -> None:
        """Confine this process to what the options and the end of the run need."""
        from pyvmm.sandbox import landlock
        from pyvmm.sandbox.confine import confine

        rules = [
            landlock.Rule(claim.path.parent, landlock.REMOVE),
            *(landlock.Rule(Path(path), landlock.READ) for path in self._machine.terminals.own),
        ]
        confinement = confine(self._config, reboot=self._extras.reboot, rules=rules)
        if confinement.lacks:
            say(
                f"the VM is less confined: {'; '.join(confinement.lacks)}",
                "`pyvmm doctor` shows the remedy",
            )
        if self._extras.verbose:
            echo(f"pyvmm: confined {confinement}", err=True)

    def _attach(self, claim: Claim, undo: contextlib.ExitStack) -> None:
        """Connect console, keys, signals and the control socket to the current machine."""
        self._warn_of_size()
        self._await_clients(claim)
        undo.callback(self._close_server)
        undo.callback(claim.close)  # runs first, so that a waiting client finds the name free
        self._output.on_gone = self._stop
        for number in ENDING:
            self._loop.on_signal(number, functools.partial(self._stop, EXIT_SIGNAL + number))
        for tty, path in self._machine.terminals.paths.items():
            say(f"Assigned terminal {tty} to pty {path}")
        if 0 in self._config.ttys:  # the console is on a pty, not here
            return
        undo.enter_context(self._terminal)
        self._keyboard = Input(
            self._loop,
            lambda data: self._machine.console.send(data),
            self._on_key,
            read=lambda fd: self._machine.console.read(fd),
        )
        self._loop.on_signal(signal.SIGCONT, self._take_terminal)
        self._loop.on_signal(signal.SIGWINCH, self._resize)
        self._connect()

    def _warn_of_size(self) -> None:
        """Warn of RAM that is larger than the host's memory."""
        if self._config.hugetlbfs is None and (text := warn_of_size(self._machine.plan.memory)):
            say(text)

    def _await_clients(self, claim: Claim) -> None:
        """Start the control server when its first client connects; most runs have none."""
        listener = claim.listener.fileno()
        since = time.monotonic()

        def serve() -> None:
            from pyvmm.control.server import Server
            from pyvmm.control.service import Service

            self._loop.unwatch(listener)
            service = Service(lambda: self._machine, self._stop, since, self._debug_server)
            self._server = Server(self._loop, claim, service.handlers)

        self._loop.watch(listener, serve)

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()

    def _connect(self) -> None:
        """Connect a new machine and the terminal."""
        self._machine.console.on_room(self._keyboard.resume)
        self._resize()
        self._take_terminal()
        self._keyboard.resume()

    def _take_terminal(self) -> None:
        """Read input while this process is in the terminal's foreground."""
        self._terminal.enter_raw_mode()
        if self._terminal.usable:
            self._keyboard.start()
        else:
            self._keyboard.pause()

    def _resize(self) -> None:
        with contextlib.suppress(OSError):  # no terminal
            self._machine.console.resize(*os.get_terminal_size(STDIN))

    def _save_on_exit(self) -> None:
        """Save the paused guest before it is ended, with --save-on-exit; a failure ends the run."""
        assert self._saved is not None
        from pyvmm.snapshot.save import save  # lazily: rarely used

        try:
            saved = save(self._machine, self._saved.path, fd=self._saved.fd)
            self._saved.commit()
            for line in saved.warnings:
                say(line)
        except VmmError as error:
            self._machine.stop(error)

    def _stop(self, code: int = 0) -> None:
        if self._reboot and self._machine.was_reset:
            self._code = code
        self._reboot = False
        if self._saved is None or self._machine.has_ended:
            self._machine.stop(code)
            return
        with self._machine.paused():  # no instruction runs between the save and the end
            self._save_on_exit()
            self._machine.stop(code)

    def _on_key(self, key: Key) -> None:
        if key is Key.STOP:
            self._machine.say_why()
            self._stop()
        else:
            click.echo(KEYS_HELP, err=True, nl=False)


def _allow_descriptors() -> None:
    """Raise this process's limit of descriptors: each vCPU takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _show_unclaimed(vcpu: int, access: Exit) -> None:
    echo(f"pyvmm: vCPU {vcpu} accesses no device: {access}", err=True)


def describe(machine: Machine, restorer: Restorer | None) -> Iterator[str]:
    """Yield lines about the machine and its host."""
    plan, image = machine.plan, machine.board.image
    inside = host.describe_inside()
    where = f"emulated: {inside}" if inside else "this machine"
    yield f"host    {where}, Linux {os.uname().release}"
    if image is not None:
        kind = " in ".join((image.kind, *reversed(image.wrappings)))
        yield f"image   {machine.config.image} ({kind}), entry {image.entry:#x}"
        yield from (f"image   {detail}" for detail in image.details)
    if restorer is not None:
        yield f"from    {restorer.path}, memory {restorer.reading.value}"
    base = machine.memory.base
    yield f"memory  {show_size(plan.memory)} at {base:#x}, {plan.ipa_bits}-bit addresses"
    yield f"vcpus   {plan.vcpus}"
    yield f"cpu     {', '.join(sorted(feature.value for feature in plan.features)) or 'plain'}"
    yield f"gic     {machine.board.irqchip.name}"
    for device in machine.devices():
        yield f"virtio  {device['region']} {device['device']} {device['backing']}".rstrip()
    if machine.vls:
        yield f"sve     {vl.show(machine.vls)} bits, as KVM reads it back from every vCPU"
    else:
        yield f"sve     {'off, by --no-sve' if machine.config.sve.off else 'the host has none'}"
