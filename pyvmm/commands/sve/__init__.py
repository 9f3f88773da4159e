"""``pyvmm sve``: the vector lengths of hosts; a file for each of its commands."""

from __future__ import annotations

import click

from pyvmm.cli import LazyGroup, Verb

COMMANDS = {
    "list": Verb(
        "pyvmm.commands.sve.list", "Show the vector lengths a host gives guests.", "list_lengths"
    ),
    "explain": Verb("pyvmm.commands.sve.explain", "Tell whether a set would work, and why not."),
    "common": Verb("pyvmm.commands.sve.common", "Show the sets that all of some hosts can give."),
    "check": Verb(
        "pyvmm.commands.sve.check", "Hold this kernel's KVM against its documentation.", "check"
    ),
}


@click.group(cls=LazyGroup, verbs=COMMANDS)
def sve() -> None:
    """See, explain and check SVE vector lengths.

    All lengths are in bits. KVM gives a guest a set that holds every length the host has up to
    the set's longest, and none that the host lacks.
    """
