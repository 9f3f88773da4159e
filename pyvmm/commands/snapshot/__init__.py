"""``pyvmm snapshot``: look into snapshot files, compare them, make them fit to be moved."""

from __future__ import annotations

import click

from pyvmm.cli import LazyGroup, Verb

COMMANDS = {
    "show": Verb("pyvmm.commands.snapshot.show", "Show what is in a snapshot."),
    "diff": Verb("pyvmm.commands.snapshot.diff", "Show what is different between two snapshots."),
    "check": Verb(
        "pyvmm.commands.snapshot.check", "Show whether a host can go on with a snapshot."
    ),
    "flatten": Verb("pyvmm.commands.snapshot.move", "Write an incremental snapshot as one file."),
    "export": Verb("pyvmm.commands.snapshot.move", "Pack a snapshot with zstd."),
    "import": Verb(
        "pyvmm.commands.snapshot.move", "Unpack what export has packed.", "import_snapshot"
    ),
}


@click.group(cls=LazyGroup, verbs=COMMANDS)
def snapshot() -> None:
    """Look into snapshots, compare and move them.

    All of these work on any machine, without KVM, but for `check` of this host.
    """
