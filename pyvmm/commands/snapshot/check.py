"""``pyvmm snapshot check``: check whether a host can restore a snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._options import EXISTING_FILE, json_option
from pyvmm.commands._output import aligned, show
from pyvmm.errors import EXIT_FAILED, EXIT_OK
from pyvmm.host.settings import HostSettings
from pyvmm.host.share import Needs
from pyvmm.snapshot.check import CheckedPart, Compatibility, machine_rows, predicted, summary, tried
from pyvmm.snapshot.hostlimits import limits_here, read_limits_file
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.state import State

SCHEMA = 1


@click.command(epilog="Exit codes: 0 it can; 1 it cannot, or only with `restore --force`.")
@click.argument("file", type=EXISTING_FILE)
@click.option(
    "--on", "probe", type=EXISTING_FILE, metavar="PROBE",
    help="Check another host. PROBE is the output of `pyvmm doctor --json` on that host.",
)  # fmt: skip
@json_option
@host_options
def check(where: HostSettings, file: Path, probe: Path | None, as_json: bool) -> int:
    """Show whether a host can restore a snapshot.

    Each row is ok, differs harmlessly, or is impossible. `pyvmm restore` makes the same check.  For
    this host, the check writes every register to a VM that never runs.
    """
    with SnapshotFile.alone(file) as snapshot:
        state = State.of(snapshot.document, str(file))
    if probe is None:
        run_here_or_forward(where, Needs(reads=(file,)))
        rows = _rows_here(state)
    else:
        limits = read_limits_file(probe)
        registers = list(predicted(state, limits))
        rows = [*machine_rows(state, limits), summary(registers), *registers]
    show(as_json, _document(file, rows), aligned([_cells(row) for row in rows]))
    return EXIT_OK if all(row.allows(False) for row in rows) else EXIT_FAILED


def _rows_here(state: State) -> list[CheckedPart]:
    from pyvmm.kvm.system import System

    with System.open() as system:
        rows = list(machine_rows(state, limits_here(system)))
        if any(row.compatibility is Compatibility.IMPOSSIBLE for row in rows):
            return rows  # KVM cannot make the VM
        registers = list(tried(system, state))
    return [*rows, summary(registers), *registers]


def _document(file: Path, rows: Iterable[CheckedPart]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "file": str(file),
        "rows": [dict(zip(("name", "verdict", "reason"), _cells(r), strict=True)) for r in rows],
    }


def _cells(row: CheckedPart) -> tuple[str, str, str]:
    return row.name, row.compatibility.value, row.reason
