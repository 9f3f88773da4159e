"""``pyvmm snapshot flatten``, ``export`` and ``import``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from pyvmm.base.files import USUAL, replacing, write_all
from pyvmm.cli import say
from pyvmm.commands._options import NEW_SNAPSHOT, STREAM, trust_option
from pyvmm.errors import UsageError
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.transfer import LEVELS, unpack
from pyvmm.snapshot.transfer import export as packed
from pyvmm.snapshot.transfer import flatten as write_flat

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("file", type=PATH)
@click.argument("out", type=NEW_SNAPSHOT)
@trust_option
def flatten(file: Path, out: Path, trust: bool) -> None:
    """Write an incremental snapshot and its parents as one file.

    OUT needs no other file, and may be FILE itself. All data is checked while it is written.
    Snapshots that were saved with FILE as their --parent still need FILE, not OUT.
    """
    with SnapshotFile.open(file, trust=trust) as snapshot:
        write_flat(snapshot, out)


@click.command()
@click.argument("file", type=PATH)
@click.argument("out", type=PATH)
@trust_option
@click.option(
    "--level", type=click.IntRange(LEVELS[0], LEVELS[-1]), default=3, metavar="N",
    help="zstd's compression level, 1 (fast) to 19 (small).",
)  # fmt: skip
@click.option(
    "--core", is_flag=True,
    help="Write an ELF core file of the guest's physical memory instead, for drgn, crash and gdb.",
)  # fmt: skip
def export(file: Path, out: Path, trust: bool, level: int, core: bool) -> None:
    """Pack a snapshot with zstd, to move it.

    An incremental snapshot becomes one that needs no other. OUT may be - for standard output:
    `pyvmm snapshot export a.snap - | ssh there pyvmm snapshot import - a.snap`.
    """
    if core:
        _export_core(file, out, trust)
        return
    if out == STREAM and sys.stdout.isatty():
        raise UsageError("a terminal cannot show a packed snapshot", hint="name a file")
    place = Path.cwd() if out == STREAM else Path(os.path.realpath(out)).parent
    with SnapshotFile.open(file, trust=trust) as snapshot:
        pieces = packed(snapshot, place, level)
        if out == STREAM:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            return
        with replacing(out, USUAL & ~0o077) as fd:
            done = 0
            for piece in pieces:
                write_all(fd, piece, done)
                done += len(piece)


def _export_core(file: Path, out: Path, trust: bool) -> None:
    """Write a snapshot as a core file."""
    from pyvmm.commands.vms.dump import NO_VMCOREINFO  # lazily: rarely used
    from pyvmm.debugger.corefile import write_core
    from pyvmm.debugger.saved import pieces_of
    from pyvmm.snapshot.snapshot import Snapshot

    if out == STREAM:
        raise UsageError("-: a core file is sparse, and needs a file", hint="name a file")
    with Snapshot(file, trust=trust) as snapshot:
        pieces = pieces_of(snapshot)
        with replacing(out, USUAL & ~0o077) as fd:
            done = write_core(fd, snapshot.vcpus, snapshot.state.vls, pieces, snapshot.read)
    if not done.has_vmcoreinfo:
        say(*NO_VMCOREINFO)


@click.command("import")
@click.argument("file", type=PATH)
@click.argument("out", type=NEW_SNAPSHOT)
def import_snapshot(file: Path, out: Path) -> None:
    """Unpack a snapshot that was exported.

    All of it is checked before OUT exists. FILE may be - for standard input.
    """
    try:
        source: Any = click.open_file(str(file), "rb")  # - is standard input
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    with source:
        identity = unpack(source, "standard input" if file == STREAM else str(file), out)
    say(f"{out}: snapshot {identity[:12]}, checked")
