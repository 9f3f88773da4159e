"""Saving and restoring a Linux guest: pyvmm beside QEMU, on the same host, in the same run.

QEMU migrates to a file and from it. Both get the same kernel and initramfs: a guest that fills
100 MiB and then says a line every 10 ms. What is measured, and from where to where, is told in
benchmarks/_snapshots_inside.py.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.hosts import Results, drive, say
from benchmarks.rows import SECONDS, Cell, Row, Unit
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running
from pyvmm.host.tools import TOOLS_SUITE, tree
from tests import linux

INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mkdir /t
mount -t tmpfs -o size=150m t /t
dd if=/dev/urandom of=/t/one bs=1M count=1
for n in $(seq 99); do cat /t/one; done >/t/rest
echo filled
while :; do echo tick; usleep 10000; done
"""
SIZES: Final = (256, 2048)  # of guests, MiB
PLACES: Final = ("the user's disk", "tmpfs")
ROUNDS: Final = 3
MIB: Final = Unit("MiB", "MiB", 1)

# Title, unit, and which of pyvmm's results and of QEMU's, which has one way to restore
WHAT: Final = (
    ("save", SECONDS, "save", "save"),
    ("restore to the guest's first output, --memory lazy", SECONDS, "lazy", "restore"),
    ("restore to the guest's first output, --memory eager", SECONDS, "eager", "restore"),
    ("on disk", MIB, "size", "size"),
)


def rows() -> list[Row]:
    """What each guest and place for the file is measured for."""
    return [
        Row(f"{what}: {mib} MiB guest, file on {place}", unit,
            Cell(_task(mib, place, "pyvmm"), ours), Cell(_task(mib, place, "qemu"), theirs))
        for mib in SIZES for place in PLACES for what, unit, ours, theirs in WHAT
    ]  # fmt: skip


def measure(host: Running, scratch: Path) -> Results:
    """Save and restore in a host, with the user's files in a directory of ``scratch``."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        work = Path(name)
        (work / "Image").write_bytes(linux.image("6.1").read_bytes())
        (work / "initrd").write_bytes(linux.initramfs({"init": INIT}))
        qemu = tree("qemu-arm64", TOOLS_SUITE, ["qemu-system-arm:arm64"], Progress())
        found: Results = {}
        for mib, place in itertools.product(SIZES, PLACES):
            say(f"snapshots of a guest with {mib} MiB on {place}, {ROUNDS} times each ...")
            arguments = [str(work), str(qemu), str(mib), place, str(ROUNDS)]
            case = json.loads(drive(host, "_snapshots_inside", arguments))
            say(json.dumps(case))
            found |= results(mib, place, case)
        return found


def results(mib: int, place: str, case: dict[str, Any]) -> Results:
    """What was found as other parts have it: for each task, each run's numbers."""
    return {
        _task(mib, place, who): [{what: case[who][what]["median"] for what in case[who]}]
        for who in ("pyvmm", "qemu")
    }


def _task(mib: int, place: str, who: str) -> str:
    return f"snapshot {mib} {place} {who}"
