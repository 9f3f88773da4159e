"""``pyvmm snapshot``: show, compare, check and move snapshot files."""

from __future__ import annotations

import click

from pyvmm.cli import LazyGroup, Verb

COMMANDS = {
    "show": Verb("snapshot.show", "Show the contents of a snapshot."),
    "diff": Verb("snapshot.diff", "Show the differences between two snapshots."),
    "check": Verb("snapshot.check", "Show whether a host can restore a snapshot."),
    "flatten": Verb("snapshot.move", "Write an incremental snapshot as one file."),
    "export": Verb("snapshot.move", "Pack a snapshot with zstd."),
    "import": Verb("snapshot.move", "Unpack a snapshot that was exported.", "import_snapshot"),
}


@click.group(cls=LazyGroup, verbs=COMMANDS)
def snapshot() -> None:
    """Show, compare and move snapshots.

    These commands work on any machine without KVM, except `check` of this host.
    """
