"""``pyvmm version``: the version, as lkvm has the verb."""

from __future__ import annotations

import click

from pyvmm import __version__


@click.command()
def version() -> None:
    """Show pyvmm's version."""
    click.echo(f"pyvmm {__version__}")
