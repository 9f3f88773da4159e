"""All that pyvmm shows of a snapshot."""

from __future__ import annotations

import json
from pathlib import Path

from pyvmm.base.output import printable
from pyvmm.commands.registers.show import show_registers
from pyvmm.commands.snapshot import diff as snapshot_diff
from pyvmm.commands.snapshot import show as snapshot_show
from pyvmm.snapshot.compare import compare
from pyvmm.snapshot.snapshot import Snapshot


def look_at_everything(path: Path, good: Path) -> None:
    """Show a snapshot, and compare it with another.

    Raises: VmmError, if pyvmm refuses it.
    """
    with Snapshot(path) as bad, Snapshot(good) as other:
        registers = [bad.registers(n, whole=n > 0) for n in range(len(bad.vcpus))]
        json.dumps(snapshot_show.document(bad, registers))
        for line in [*snapshot_show.lines(bad), *(x for r in registers for x in show_registers(r))]:
            assert printable(line).isprintable()
        for a, b in ((bad, other), (other, bad)):
            found = compare(a, b)
            json.dumps(snapshot_diff.document(path, good, found, found.differ))
            for line in snapshot_diff.lines(path, good, found):
                assert printable(line).isprintable()
