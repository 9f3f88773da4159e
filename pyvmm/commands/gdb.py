"""``pyvmm gdb``: a debugger for a running VM or a snapshot."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from pyvmm.base.dirs import runtime_dir
from pyvmm.cli import say
from pyvmm.commands._options import EXISTING_FILE, trust_option
from pyvmm.commands.vms._running import chosen
from pyvmm.control.debugging import DebugListener, carry, dial
from pyvmm.errors import HostError, UsageError, VmmError
from pyvmm.host.bridges import forwarded, serving

DEBUGGERS = ("gdb-multiarch", "aarch64-linux-gnu-gdb", "gdb", "lldb")
PLACE = "gdb"  # below the runtime directory
# gdb reads the registers' sizes once. At each stop this reads them again, if the guest has changed
# its vector length: VG counts doublewords.
FOLLOW_LENGTH = (
    "python gdb.events.stop.connect(lambda event: gdb.execute('unset tdesc filename', "
    "to_string=True) if 'vg' in [r.name for r in gdb.selected_frame().architecture().registers()] "
    "and int(gdb.parse_and_eval('$vg')) * 8 != gdb.parse_and_eval('$z0').type.sizeof else None)"
)


@click.command(
    epilog="Exit codes: the debugger's; 2 usage; 3 there is no debugger on this machine.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("guest", metavar="NAME|FILE")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]")
@click.option(
    "--symbols", type=EXISTING_FILE, metavar="FILE",
    help="An ELF file with the guest's symbols: its image, or a kernel's vmlinux.",
)  # fmt: skip
@click.option(
    "--debugger", metavar="COMMAND", show_default=", ".join(DEBUGGERS),
    help="The debugger: a gdb that knows AArch64, or lldb.",
)  # fmt: skip
@click.option(
    "--serve", is_flag=True,
    help="Start no debugger: print an address, and accept one there until Ctrl-C.",
)  # fmt: skip
@trust_option
def gdb(
    guest: str, args: tuple[str, ...], symbols: Path | None, debugger: str | None, serve: bool,
    trust: bool,
) -> int:  # fmt: skip
    """Debug a VM or a snapshot with gdb or lldb.

    NAME is a running VM: it stops while a debugger is connected, and continues when it detaches or
    ends. FILE is a snapshot: it is read-only, and needs no KVM. ARGS are the debugger's.
    """
    command = [] if serve else _debugger(debugger)
    place = runtime_dir(PLACE) / f"{os.getpid()}.sock"
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(DebugListener(str(place)))
        undo.enter_context(_serving(guest, listener, trust))
        if serve:
            say(f"for a debugger: target remote {listener.address}")
            signal.pause()
        options = _lldb_options if _is_lldb(command) else _gdb_options
        return _run([*command, *options(listener.address, symbols), *args])


def _serving(
    guest: str, listener: DebugListener, trust: bool
) -> contextlib.AbstractContextManager[None]:
    """Return a context that serves debuggers of a VM or a snapshot."""
    path = Path(guest)
    if path.is_file():
        return _serving_snapshot(path, listener, trust)
    if path.suffix == ".snap" or ("/" in guest.strip("/") and path.parent.is_dir()):
        raise UsageError(f"{guest}: there is no such file")
    (vm,) = chosen(guest, False).vms
    if vm.place.running is not None:
        return forwarded(vm.place.running, listener, vm.name)

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                with dial(vm.name) as there:
                    carry(there, connection.fileno(), connection.fileno())
            except VmmError as error:
                say(error.message, error.hint)

    return serving(listener, serve)


@contextlib.contextmanager
def _serving_snapshot(path: Path, listener: DebugListener, trust: bool) -> Iterator[None]:
    from pyvmm.debugger.saved import SavedTarget, converse
    from pyvmm.snapshot.snapshot import Snapshot

    lock = threading.Lock()  # one debugger reads the file at a time

    with Snapshot(path, trust=trust) as snapshot:

        def serve(connection: socket.socket) -> None:
            with lock, connection:
                converse(SavedTarget(snapshot), connection)

        with serving(listener, serve):
            yield


def _debugger(command: str | None) -> list[str]:
    """Return the debugger's command.  Raises: HostError, if there is none."""
    if command is not None:
        words = shlex.split(command)
        if not words or shutil.which(words[0]) is None:
            raise HostError(f"--debugger {command}: there is no such program")
        return words
    for name in DEBUGGERS:
        if (found := shutil.which(name)) is not None:
            return [found]
    raise HostError(
        f"this machine has no debugger: {', '.join(DEBUGGERS)}",
        hint="apt-get install gdb-multiarch; or --serve, and connect from elsewhere",
    )


def _is_lldb(command: list[str]) -> bool:
    return any("lldb" in Path(word).name for word in command[:1])


def _gdb_options(address: str, symbols: Path | None) -> list[str]:
    """Return the arguments with which gdb connects."""
    options = ["-q"] if symbols is None else ["-q", str(symbols)]
    for line in ("set architecture aarch64", FOLLOW_LENGTH, f"target remote {address}"):
        options += ["-ex", line]
    return options


def _lldb_options(address: str, symbols: Path | None) -> list[str]:
    """Return the arguments with which lldb connects."""
    options = [] if symbols is None else [str(symbols)]
    return [*options, "-o", f"process connect unix-connect://{address}"]


def _run(command: list[str]) -> int:
    """Run the debugger in the foreground; Ctrl-C is for it alone."""
    before: dict[int, Callable[..., object] | int | None] = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)
    }
    try:
        with subprocess.Popen(command, restore_signals=True, preexec_fn=_default) as process:
            code = process.wait()
    except OSError as error:
        raise HostError(f"{command[0]} cannot be started: {error.strerror}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _default() -> None:
    """Undo, in the debugger's process, that Ctrl-C is ignored."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
