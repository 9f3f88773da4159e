"""``pyvmm sve``: the vector lengths of hosts."""

from __future__ import annotations

import click

from pyvmm.cli import LazyGroup, Verb

COMMANDS = {
    "list": Verb("sve.list", "Show the vector lengths of a host's guests.", "list_lengths"),
    "explain": Verb("sve.explain", "Show whether a set works, or why it does not."),
    "common": Verb("sve.common", "Show the sets that several hosts have in common."),
    "check": Verb("sve.check", "Check this kernel's KVM against its documentation."),
}


@click.group(cls=LazyGroup, verbs=COMMANDS)
def sve() -> None:
    """Show, explain and check SVE vector lengths.

    All lengths are in bits. KVM accepts a set only if it holds every length of the host up to the
    set's longest.
    """
