"""``pyvmm cpu``: the CPUs that hosts give guests, and models that several hosts can give."""

from __future__ import annotations

import click

from pyvmm.cli import LazyGroup, Verb

COMMANDS = {
    "list": Verb("cpu.list", "Show a host's CPU, and what of it can be changed.", "list_fields"),
    "explain": Verb("cpu.explain", "Show whether hosts can give a CPU, or why they cannot."),
    "common": Verb("cpu.common", "Make the best CPU model that several hosts can give."),
}


@click.group(cls=LazyGroup, verbs=COMMANDS)
def cpu() -> None:
    """Show, compare and choose the CPU that guests see.

    A guest learns what its CPU can do from ID registers. A guest can move to another host only if
    that host keeps all of it. A CPU model is a file with the values that several hosts can give.
    Start a guest with it by `pyvmm run --cpu MODEL`.
    """
