"""``pyvmm sve explain``: show whether a set of vector lengths works on a host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from pyvmm.arm64 import vl
from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._options import json_option
from pyvmm.commands._output import show
from pyvmm.commands.sve._probe import probe_here, read_probes, shown
from pyvmm.errors import EXIT_FAILED, EXIT_OK, UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.svecheck.probe import Probe

SCHEMA = 1
HERE = "this host"


@click.command()
@click.argument("text", metavar="SET")
@click.argument("more", metavar="", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--on", multiple=True, type=click.Path(path_type=Path), metavar="PROBE...",
    help="Check hosts by these probes, which `pyvmm sve list --probe` saved.",
)  # fmt: skip
@json_option
@host_options
def explain(
    where: HostSettings, text: str, more: tuple[Path, ...], on: tuple[Path, ...], as_json: bool
) -> int:
    """Show whether a set works, or why it does not.

    SET is a list of vector lengths in bits: 128,256. Show a guest's vector length for each value of
    ZCR_EL1.LEN. For a set that KVM refuses, show the reason and the nearest sets that work. Exit
    with 1 if a host cannot give the set.
    """
    asked = vl.parse(text)
    if more and not on:
        raise UsageError(f"{more[0]}: one set at a time", hint="probes come after --on")
    if on:
        probes = read_probes((*on, *more))
    else:
        run_here_or_forward(where)
        probes = {HERE: probe_here()}
    show(as_json, document(asked, probes), lines(asked, probes))
    works = all(vl.is_legal(asked, probe.vls) for probe in probes.values())
    return EXIT_OK if works else EXIT_FAILED


def document(asked: vl.VlSet, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """Return the JSON document."""
    works = [vl.is_legal(asked, probe.vls) for probe in probes.values()]
    return {
        "schema": SCHEMA,
        "set": sorted(asked),
        "works": all(works),
        "hosts": [
            {
                "name": name,
                "lengths": sorted(probe.vls),
                "works": vl.is_legal(asked, probe.vls),
                "reason": vl.why_not(asked, probe.vls) or None,
                "nearest": [sorted(vls) for vls in vl.nearest(asked, probe.vls)],
            }
            for name, probe in probes.items()
        ],
        "vl_by_zcr_el1_len": vl.by_len(asked) if any(works) else None,
    }


def lines(asked: vl.VlSet, probes: Mapping[str, Probe]) -> Iterator[str]:
    """Yield the answer as text."""
    for name, probe in probes.items():
        reason = vl.why_not(asked, probe.vls)
        yield f"{vl.show(asked)} {'does not work' if reason else 'works'} on {name}"
        yield f"  host     {probe.machine}, {probe.kernel}"
        yield f"  has      {shown(probe.vls)}"
        if reason:
            yield f"  why not  {reason}"
            near = " or ".join(map(vl.show, vl.nearest(asked, probe.vls)))
            yield f"  nearest  {near or 'none'}"
    if any(vl.is_legal(asked, probe.vls) for probe in probes.values()):
        yield from _what_a_guest_sees(asked)


def _what_a_guest_sees(asked: vl.VlSet) -> Iterator[str]:
    """Yield the vector length for each ZCR_EL1.LEN; equal ones share a line."""
    yield f"a guest with {vl.show(asked)}:"
    yield "  ZCR_EL1.LEN  allows up to     vector length"
    numbered = [*enumerate(vl.by_len(asked))]
    for bits, group in groupby(numbered, key=lambda row: row[1]):
        lens = [number for number, _ in group]
        limits = [(number + 1) * vl.QUADWORD for number in lens]
        yield f"  {_range(lens):11}  {_range(limits):15}  {bits}"


def _range(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return str(first) if first == last else f"{first} to {last}"
