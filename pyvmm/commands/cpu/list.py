"""``pyvmm cpu list``: show a host's CPU as its guests see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pyvmm.arm64 import idrules, vl
from pyvmm.arm64.bits import Field
from pyvmm.arm64.idrules import Rule
from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._options import EXISTING_FILE, json_option
from pyvmm.commands._output import aligned, show
from pyvmm.commands.cpu._hosts import host_here
from pyvmm.cpumodel.fit import value_of
from pyvmm.cpumodel.host import CpuHost, read_host
from pyvmm.errors import EXIT_OK
from pyvmm.host.settings import HostSettings

SCHEMA = 1


@click.command()
@click.option(
    "--on", "probe", type=EXISTING_FILE, metavar="HOST",
    help="Show another host. HOST is the output of `pyvmm doctor --json` there.",
)  # fmt: skip
@click.option(
    "-a", "--all", "everything", is_flag=True, help="Show fields that are 0 or unnamed too."
)
@json_option
@host_options
def list_fields(where: HostSettings, probe: Path | None, everything: bool, as_json: bool) -> int:
    """Show a host's CPU, and what of it can be changed.

    Each line is a field of an ID register: its value, the values that a guest can be given instead
    (`pyvmm run --cpu-id FIELD=VALUE`), and its meaning. AArch32 fields and reserved ones have no
    names but their bits: --all shows them.
    """
    if probe is None:
        run_here_or_forward(where)
        host = host_here()
    else:
        host = read_host(probe)
    show(as_json, document(host), lines(host, everything))
    return EXIT_OK


def _fields(host: CpuHost) -> Iterator[tuple[str, Field, int]]:
    """Yield the register, the field, and the field's value."""
    for register in host.registers:
        if idrules.is_identification(register):
            for field in idrules.fields(register):
                yield register, field, value_of(host, register, field)


def document(host: CpuHost) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "sve_vls": sorted(host.vls),
        "pauth": host.pauth or None,
        "counter_hz": host.counter_hz,
        "fields": [
            {
                "name": f"{register}.{field.name}",
                "value": value,
                "word": field.word(value << field.lo),
                "meaning": field.meaning,
                "writable": host.can_write(register, field),
                "by_feature": idrules.is_by_feature(register, field.name),
                "rule": idrules.rule(register, field.name).name,
            }
            for register, field, value in _fields(host)
        ],
    }


def lines(host: CpuHost, everything: bool) -> Iterator[str]:
    """Yield the CPU as text."""
    yield f"SVE vector lengths      {vl.show(host.vls) or 'none'}"
    yield f"pointer authentication  {host.pauth or 'none'}"
    rows = [("FIELD", "VALUE", "CAN BE", "MEANING")]
    for register, field, value in _fields(host):
        if everything or (value and field.meaning != idrules.UNNAMED):
            shown = idrules.show(register, field, value)
            can_be = choices(host, register, field, value)
            rows.append((f"{register}.{field.name}", shown, can_be, field.meaning))
    yield from aligned(rows)


def choices(host: CpuHost, register: str, field: Field, value: int) -> str:
    """Return the other values that a guest can be given, as text."""
    if idrules.is_by_feature(register, field.name):
        return "by feature"
    if not host.can_write(register, field):
        return "-"
    if idrules.rule(register, field.name) is Rule.NAME:
        return "any"
    kept = [n for n in range(field.largest + 1)
            if n != value and not idrules.lacks(register, field, n, value)]  # fmt: skip
    if not kept:
        return "-"
    return str(kept[0]) if len(kept) == 1 else f"{kept[0]} to {kept[-1]}"
