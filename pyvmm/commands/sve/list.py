"""``pyvmm sve list``: the vector lengths that a host gives guests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pyvmm.arm64 import cpuid, vl
from pyvmm.cli import echo
from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._options import FILE, json_option
from pyvmm.commands._output import show
from pyvmm.commands.sve._probe import probe_here
from pyvmm.errors import EXIT_FAILED, EXIT_OK
from pyvmm.host.settings import HostSettings
from pyvmm.host.share import Needs
from pyvmm.svecheck.probe import Probe

NAME = 9  # columns


@click.command(name="list")
@click.option(
    "--probe", "file", type=FILE, metavar="FILE",
    help="Save a probe of this host to FILE, for `explain --on` and `common` on any machine.",
)  # fmt: skip
@json_option
@host_options
def list_lengths(where: HostSettings, file: Path | None, as_json: bool) -> int:
    """Show the vector lengths of a host's guests.

    Also show the sets that the host can give. Lengths are in bits, bytes and quadwords. Compare
    KVM's lengths with those that the host's own programs have. Exit with 1 if a difference is a
    bug.
    """
    run_here_or_forward(where, Needs(creates=(file,) if file else ()))
    probe = probe_here()
    if file is not None:
        probe.write(file)
    show(as_json, document(probe), lines(probe))
    if file is not None:
        echo(f"{file}: saved", err=True)
    contradicts = any(not difference.known for difference in probe.differences())
    return EXIT_FAILED if contradicts else EXIT_OK


def document(probe: Probe) -> dict[str, Any]:
    """Return the JSON document: the probe, its sets and differences."""
    differences = [*probe.differences()]
    return {
        **probe.document(),
        "sets": [sorted(vls) for vls in vl.legal_sets(probe.vls)],
        "agrees": not differences,
        "differences": [
            {"what": difference.text, "known": difference.known} for difference in differences
        ],
    }


def lines(probe: Probe) -> Iterator[str]:
    """Yield the host's lengths as text."""
    yield f"{'host':{NAME}} {probe.machine}"
    yield f"{'kernel':{NAME}} {probe.kernel}"
    for midr in probe.midrs:  # one for each kind of CPU
        yield f"{'CPU':{NAME}} {cpuid.describe(midr)}"
    if not probe.vls and not probe.prctl:
        yield f"{'SVE':{NAME}} none, neither for guests nor for the host's own programs"
        return
    yield from _agreement(probe)
    yield ""
    yield f"{'BITS':>6} {'BYTES':>6} {'QUADWORDS':>10}   SET UP TO THIS LENGTH"
    for length in sorted(probe.vls):
        vls = vl.up_to(probe.vls, length)
        yield f"{length:6} {length // 8:6} {length // vl.QUADWORD:10}   --sve-vls={vl.show(vls)}"


def _agreement(probe: Probe) -> Iterator[str]:
    """Yield how the lengths of the host's own programs differ."""
    differences = [*probe.differences()]
    own = vl.show(probe.prctl) or "no SVE"
    if not differences:
        yield f"{'programs':{NAME}} {own}: the same as guests, by prctl(PR_SVE_SET_VL) and RDVL"
        return
    yield f"{'programs':{NAME}} {own}, by prctl(PR_SVE_SET_VL)"
    for difference in differences:
        yield f"{'' if difference.known else 'WRONG':{NAME}} {difference.text}"
