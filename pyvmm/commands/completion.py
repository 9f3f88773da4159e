"""``pyvmm completion``: a script that makes a shell complete pyvmm's command line."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command(epilog='For this shell: eval "$(pyvmm completion bash)"')
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion of pyvmm."""
    program = ctx.find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(program.command, {}, "pyvmm", "_PYVMM_COMPLETE").source()
    click.echo(script)
