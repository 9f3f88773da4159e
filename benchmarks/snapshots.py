"""Measure saves and restores of guests: pyvmm beside QEMU, on the same host, in the same run.

QEMU migrates to a file and from it. Both get the same guests with 100 MiB filled. One is Linux,
which then prints a line every 10 ms. The other only prints (benchmarks/programs/filled.S): its
first output after a restore comes from one of its first instructions. The definition of each time
is in benchmarks/_snapshots_inside.py.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.hosts import Results, drive, say
from benchmarks.rows import SECONDS, Cell, Row, Unit
from pyvmm.host.parts.tools import TOOLS_SUITE, tree
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running
from pyvmm.host.share import ALL
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
FILL: Final = 100 << 20
SIZES: Final = (256, 2048)  # of guests, MiB
PLACES: Final = ("the user's disk", "tmpfs")
ROUNDS: Final = 3
MIB: Final = Unit("MiB", "MiB", 1)

# For each guest: title, unit, pyvmm's result and QEMU's, which has one way to restore
WHAT: Final = {
    "bare": (
        ("restore to the guest's first instructions, --memory lazy", SECONDS, "lazy", "restore"),
        ("restore to the guest's first instructions, --memory eager", SECONDS, "eager", "restore"),
    ),
    "linux": (
        ("restore to Linux's first output, --memory lazy", SECONDS, "lazy", "restore"),
        ("restore to Linux's first output, --memory eager", SECONDS, "eager", "restore"),
        ("save", SECONDS, "save", "save"),
        ("on disk", MIB, "size", "size"),
    ),
}
CASES: Final = tuple(itertools.product(WHAT, SIZES, PLACES))


def rows() -> list[Row]:
    """Return the rows of each guest and each place of the file."""
    return [
        Row(f"{what}: {mib} MiB guest, file on {place}", unit,
            Cell(_task(guest, mib, place, "pyvmm"), ours),
            Cell(_task(guest, mib, place, "qemu"), theirs))
        for guest, mib, place in CASES for what, unit, ours, theirs in WHAT[guest]
    ]  # fmt: skip


def measure(host: Running, scratch: Path) -> Results:
    """Save and restore in a host, with the user's files in a directory of ``scratch``."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        work = Path(name)
        (work / "Image").write_bytes(linux.image("6.1").read_bytes())
        (work / "initrd").write_bytes(linux.initramfs({"init": INIT}))
        qemu = tree("qemu-arm64", TOOLS_SUITE, ["qemu-system-arm:arm64"], Progress())
        found: Results = {}
        for guest, mib, place in CASES:
            say(f"snapshots of a {guest} guest with {mib} MiB on {place}, {ROUNDS} times each ...")
            arguments = [str(work), str(qemu), guest, str(mib), place, str(ROUNDS)]
            case = json.loads(drive(host, "_snapshots_inside", arguments, needs=ALL))
            say(json.dumps(case))
            found |= results(guest, mib, place, case)
        return found


def results(guest: str, mib: int, place: str, case: dict[str, Any]) -> Results:
    """Return the results in the form of other parts: for each task, each run's numbers."""
    return {
        _task(guest, mib, place, who): [{what: case[who][what]["median"] for what in case[who]}]
        for who in ("pyvmm", "qemu")
    }


def _task(guest: str, mib: int, place: str, who: str) -> str:
    return f"snapshot {guest} {mib} {place} {who}"
