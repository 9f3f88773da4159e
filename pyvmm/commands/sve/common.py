"""``pyvmm sve common``: the sets of vector lengths that several hosts have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from pyvmm.arm64 import vl
from pyvmm.commands._options import json_option
from pyvmm.commands._output import show
from pyvmm.commands.sve._probe import read_probes, shown
from pyvmm.errors import EXIT_FAILED, EXIT_OK
from pyvmm.svecheck.probe import Probe

SCHEMA = 1


@click.command()
@click.argument(
    "files", metavar="PROBE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@json_option
def common(files: tuple[Path, ...], as_json: bool) -> int:
    """Show the sets that several hosts have in common.

    A guest with one of these sets has the same vector lengths on each of the hosts.
    Each PROBE is a file that `pyvmm sve list --probe` saved on one host. Exit with 1 if there is no
    such set.
    """
    probes = read_probes(files)
    sets = vl.legal_sets(*(probe.vls for probe in probes.values()))
    show(as_json, document(probes, sets), lines(probes, sets))
    return EXIT_OK if sets else EXIT_FAILED


def document(probes: Mapping[str, Probe], sets: list[vl.VlSet]) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "hosts": [{"name": name, "lengths": sorted(probe.vls)} for name, probe in probes.items()],
        "sets": [sorted(vls) for vls in sets],
        "why_no_more": why_no_more(probes, sets) or None,
    }


def lines(probes: Mapping[str, Probe], sets: list[vl.VlSet]) -> Iterator[str]:
    """Yield the answer as text."""
    width = max(map(len, probes))
    for name, probe in probes.items():
        yield f"{name:{width}}  {shown(probe.vls)}"
    yield f"sets that {'all of them' if len(probes) > 1 else 'it'} can give:"
    for vls in sets:
        yield f"  --sve-vls={vl.show(vls)}"
    if not sets:
        yield "  none"
    if reason := why_no_more(probes, sets):
        yield reason


def why_no_more(probes: Mapping[str, Probe], sets: list[vl.VlSet]) -> str:
    """Return the shortest length that only some hosts have; empty where all have the same."""
    so_far = max(sets, key=len, default=vl.NO_SVE)
    beyond = frozenset().union(*(probe.vls for probe in probes.values())) - so_far
    if not beyond:
        return ""
    apart = min(beyond)
    has = [name for name, probe in probes.items() if apart in probe.vls]
    lacks = [name for name in probes if name not in has]
    none = "no longer set" if sets else "no set"
    return f"{none}: {apart} is in {', '.join(has)}, but not in {', '.join(lacks)}"
