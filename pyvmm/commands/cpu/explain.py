"""``pyvmm cpu explain``: show whether hosts can give a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._options import json_option
from pyvmm.commands._output import aligned, counted, show
from pyvmm.commands.cpu._hosts import host_here, read_hosts
from pyvmm.cpumodel.fit import Fit, PartFit, fit
from pyvmm.cpumodel.model import CpuModel, parse_field, read_model
from pyvmm.errors import EXIT_FAILED, EXIT_OK, UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.host.share import Needs

SCHEMA = 1
HERE = "this host"


@click.command()
@click.argument("cpu", metavar="MODEL|FIELD=VALUE...", nargs=-1, required=True)
@click.option(
    "--on", multiple=True, type=click.Path(path_type=Path), metavar="HOST",
    help="Check this host, by the output of `pyvmm doctor --json` there; repeatable.",
)  # fmt: skip
@json_option
@host_options
def explain(where: HostSettings, cpu: tuple[str, ...], on: tuple[Path, ...], as_json: bool) -> int:
    """Show whether hosts can give a CPU, or why they cannot.

    The CPU is a MODEL that `pyvmm cpu common` wrote, or single fields such as
    ID_AA64ISAR0_EL1.SHA3=0. Show each part that differs from the host's own CPU. Exit with 1 if a
    host cannot give the CPU.
    """
    model, files = read_cpu(cpu)
    if on:
        hosts = read_hosts(on)
    else:
        run_here_or_forward(where, Needs(reads=files))
        hosts = {HERE: host_here()}
    parts = {name: list(fit(model, host)) for name, host in hosts.items()}
    show(as_json, document(parts), lines(parts))
    return (
        EXIT_OK
        if all(part.is_given for found in parts.values() for part in found)
        else (EXIT_FAILED)
    )


def read_cpu(words: Sequence[str]) -> tuple[CpuModel, tuple[Path, ...]]:
    """Return the model that the words give, and the files that were read.

    Raises: UsageError.
    """
    files = [Path(word) for word in words if "=" not in word or Path(word).is_file()]
    if len(files) > 1:
        raise UsageError(f"{files[1]}: one model at a time")
    model = read_model(files[0]) if files else CpuModel()
    single = dict(parse_field(word) for word in words if Path(word) not in files)
    return model.replace(fields=model.fields | single), tuple(files)


def document(parts: Mapping[str, list[PartFit]]) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "hosts": [
            {
                "name": name,
                "given": all(part.is_given for part in found),
                "parts": [
                    {"name": part.name, "fit": part.fit.name.lower(), "has": part.has,
                     "asked": part.asked}
                    for part in found
                ],
            }
            for name, found in parts.items()
        ],
    }  # fmt: skip


def lines(parts: Mapping[str, list[PartFit]]) -> Iterator[str]:
    """Yield the answer as text: the parts that differ, those that fail first."""
    for name, found in parts.items():
        failed = [part for part in found if not part.is_given]
        verdict = f"cannot be given: {counted(len(failed), 'part')}" if failed else "can be given"
        yield f"{name}: the CPU {verdict}"
        changed = [part for part in found if part.fit is Fit.CHANGED]
        rows = [
            (f"  {part.name}", part.fit.value, f"the host has {part.has}, asked is {part.asked}")
            for part in (*failed, *changed)
        ]
        yield from aligned(rows) if rows else ()
