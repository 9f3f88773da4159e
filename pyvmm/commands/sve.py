"""``pyvmm sve``: vector lengths, seen and checked.  Its verbs are imported when they are used."""

from __future__ import annotations

import importlib

import click

from pyvmm.cli import Verb

VERBS = {
    "check": Verb("pyvmm.commands.sve_check", "Hold this kernel's KVM against its documentation."),
}


class SveVerbs(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module and take the command from it."""
        if cmd_name not in VERBS:
            return None
        verb = VERBS[cmd_name]
        command = getattr(importlib.import_module(verb.module), verb.function or cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.group(cls=SveVerbs)
def sve() -> None:
    """See and check SVE vector lengths."""
