"""``pyvmm snapshot check``: check whether a host can restore a snapshot."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import click

from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.errors import EXIT_FAILED, EXIT_OK
from pyvmm.host.settings import HostSettings
from pyvmm.snapshot.check import Compatibility, Row, machine_rows, predicted, summary, tried
from pyvmm.snapshot.hostlimits import limits_here, read_limits_file
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.state import State

SCHEMA = 1


@click.command(epilog="Exit codes: 0 it can; 1 it cannot, or only with `restore --force`.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--on", "probe", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PROBE", help="Check another host. PROBE is the output of `pyvmm doctor --json` on "
    "that host.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@host_options
def check(where: HostSettings, file: Path, probe: Path | None, as_json: bool) -> int:
    """Show whether a host can restore a snapshot.

    Each row is ok, differs harmlessly, or is impossible. `pyvmm restore` makes the same check.  For
    this host, the check writes every register to a VM that never runs.
    """
    with SnapshotFile.open(file) as snapshot:
        state = State.of(snapshot.document, str(file))
    if probe is None:
        run_here_or_forward(where, [file])
        rows = _rows_here(state)
    else:
        limits = read_limits_file(probe)
        registers = list(predicted(state, limits))
        rows = [*machine_rows(state, limits), summary(registers), *registers]
    if as_json:
        click.echo(json.dumps(_document(file, rows), indent=2))
    else:
        _show(rows)
    return EXIT_OK if all(row.allows(False) for row in rows) else EXIT_FAILED


def _rows_here(state: State) -> list[Row]:
    from pyvmm.kvm.system import System

    with System.open() as system:
        rows = list(machine_rows(state, limits_here(system)))
        if any(row.compatibility is Compatibility.IMPOSSIBLE for row in rows):
            return rows  # KVM cannot make the VM
        registers = list(tried(system, state))
    return [*rows, summary(registers), *registers]


def _document(file: Path, rows: Iterable[Row]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "file": str(file),
        "rows": [
            {"name": r.name, "verdict": r.compatibility.value, "reason": r.reason} for r in rows
        ],
    }


def _show(rows: list[Row]) -> None:
    width = max(len(row.name) for row in rows)
    verdicts = max(len(row.compatibility.value) for row in rows)
    for row in rows:
        click.echo(f"{row.name:{width}}  {row.compatibility.value:{verdicts}}  {row.reason}")
