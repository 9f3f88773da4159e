"""``pyvmm cpu common``: the best CPU model that several hosts can give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from pyvmm.cli import echo
from pyvmm.commands._output import aligned, counted
from pyvmm.commands.cpu._hosts import read_hosts
from pyvmm.cpumodel.common import Common
from pyvmm.cpumodel.common import common as common_of
from pyvmm.errors import EXIT_FAILED, EXIT_OK


@click.command()
@click.argument(
    "files", metavar="HOST...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
def common(files: tuple[Path, ...]) -> int:
    """Make the best CPU model that several hosts can give.

    Each HOST is the output of `pyvmm doctor --json` there. Print the model as JSON on stdout, and
    on stderr what each host loses by it and what keeps guests from moving. Exit with 1 if a guest
    with this model could not move between all hosts.

        pyvmm cpu common a.json b.json > fleet.json
    """
    found = common_of(read_hosts(files))
    click.echo(json.dumps(found.model.document(), indent=2))
    for line in lines(found):
        echo(line, err=True)
    return EXIT_OK if found.is_whole else EXIT_FAILED


def lines(found: Common) -> Iterator[str]:
    """Yield losses and obstacles as text."""
    for host, losses in found.losses.items():
        yield f"{host} loses {counted(len(losses), 'part') if losses else 'nothing'}"
        if losses:
            rows = [(f"  {loss.name}", f"{loss.has} becomes {loss.model}") for loss in losses]
            yield from aligned(rows)
    for harmless, title in ((True, "differs, harmless:"), (False, "no guest can move, because:")):
        rows = [(f"  {o.name}", o.reason) for o in found.obstacles if o.harmless is harmless]
        if rows:
            yield title
            yield from aligned(rows)
