"""``pyvmm save``: save a running VM to a file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import click

from pyvmm.base.units import show_size
from pyvmm.cli import echo, say
from pyvmm.commands._hostopts import own_key
from pyvmm.commands._options import EXISTING_FILE, NEW_SNAPSHOT, json_option
from pyvmm.commands._output import show
from pyvmm.commands.vms._running import Vm, chosen, document, exit_code, readable, successes
from pyvmm.control.wire import Message
from pyvmm.errors import VmmError
from pyvmm.host import share
from pyvmm.host.share import Needs


@click.command(epilog="Exit codes: 0 saved; 1 the VM cannot be saved; 2 usage; 3 the disk is full.")
@click.argument("name")
@click.argument("file", type=NEW_SNAPSHOT)
@click.option("--resume", is_flag=True, help="Resume the VM after the save; by default it ends.")
@click.option(
    "--parent", type=EXISTING_FILE, metavar="FILE",
    help="Write only what has changed since the snapshot FILE of this VM.",
)  # fmt: skip
@click.option(
    "--track", is_flag=True,
    help="Have KVM log dirty pages from now on, for a faster next save with --parent.",
)  # fmt: skip
@json_option
def save(
    name: str, file: Path, resume: bool, parent: Path | None, track: bool, as_json: bool
) -> int:
    """Save a VM to a file.

    `pyvmm restore` restores the VM from FILE.  If saving fails, FILE stays as it was.  FILE holds
    the guest's memory, so only you can read it (mode 0600).  FILE does not hold the contents of
    disks.  If FILE is a symbolic link, the file that it leads to is replaced.
    """
    (vm,) = chosen(name, False).vms
    files = [path.absolute() for path in (file, parent) if path is not None]
    request = {
        "do": "save",
        "file": str(files[0]),
        "parent": None if parent is None else str(files[1]),
        "resume": resume,
        "track": track,
    }
    replies = [vm.ask(request, _needs(vm, files[0], files[1:]))]
    if as_json:
        show(True, document(replies), ())
    for reply in successes(replies):
        warnings, size = readable(reply, _written)
        for line in warnings:
            say(line)
        if not as_json:
            done = "saved, and runs on" if resume else "saved, and ended"
            echo(f"{reply['name']}: {done}: {file}, {size} on disk", err=True)
    return exit_code(replies)


def _written(reply: Message) -> tuple[list[str], str]:
    """Return the warnings of a save, and the size of its file."""
    return [str(line) for line in reply["warnings"]], show_size(reply["bytes_on_disk"])


def _needs(vm: Vm, file: Path, parents: Sequence[Path]) -> Needs | None:
    """Return the files that the save of a VM in an emulated host opens; None for another VM.

    Raises: HostError, if the host cannot see them.
    """
    if vm.place.running is None:
        return None
    share.refuse_hidden((file, *parents))
    chain = list(parents)
    for parent in parents:
        from pyvmm.snapshot.reader import SnapshotFile  # lazily: it is large

        with contextlib.suppress(VmmError), SnapshotFile.open(parent, trust=True) as snapshot:
            chain += [older.path for older in snapshot.chain()[:-1]]  # errors: the save has them
    return Needs(creates=(file,), reads=tuple(chain)) + own_key(make=True)
