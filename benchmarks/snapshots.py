"""Saving and restoring a Linux guest: pyvmm beside QEMU, on the same host, in the same run.

    .venv/bin/python -m benchmarks.snapshots [--sizes 256,2048] [--rounds 5] [--out FILE.json]

QEMU is Debian's for arm64 with KVM, in the emulated host (or on this machine, where it is arm64);
it migrates to a file and from it.  Both get the same kernel and initramfs: a guest that fills
100 MiB and then says a line every 10 ms.  What is measured, and from where to where, is told in
benchmarks/_snapshots_inside.py.  It wants a quiet machine: what else runs is in every figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pyvmm.host import HostSettings, forward, is_local
from pyvmm.host.progress import Progress
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
RESULTS = "results.json"


def main() -> int:
    """Measure, print a table, and write what was measured."""
    parser = argparse.ArgumentParser(description="pyvmm's snapshots beside QEMU's")
    parser.add_argument("--sizes", default="256,2048", help="guests' memory, MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the measurements there, as JSON")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd() / "build") as name:
        work = Path(name)
        (work / "Image").write_bytes(linux.image("6.1").read_bytes())
        (work / "initrd").write_bytes(linux.initramfs({"init": INIT}))
        qemu = tree("qemu-arm64", TOOLS_SUITE, ["qemu-system-arm:arm64"], Progress())
        arguments = [str(work), str(qemu), chosen.sizes, str(chosen.rounds)]
        code = run_inside(["python3", "-m", "benchmarks._snapshots_inside", *arguments])
        if code:
            return code
        results = json.loads((work / RESULTS).read_text())
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=2) + "\n")
    show(results)
    return 0


def run_inside(command: list[str]) -> int:
    """Run a command where there is KVM; returns its exit code."""
    if is_local(HostSettings()):
        return subprocess.run([sys.executable, *command[1:]]).returncode
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    return forward(HostSettings(), command)


def show(results: dict[str, Any]) -> None:
    """The medians, as a table for the README."""
    print(f"\n{results['host']}; medians of {results['rounds']}")
    print("| guest, file on | what | pyvmm | QEMU | QEMU / pyvmm |\n|---|---|---|---|---|")
    for case in results["cases"]:
        where = f"{case['mib']} MiB, {case['place']}"
        for what, unit in (("save", "s"), ("lazy", "s"), ("eager", "s"), ("size", "MiB")):
            mine = case["pyvmm"][what]["median"]
            theirs = case["qemu"]["size" if what == "size" else WITH.get(what, what)]["median"]
            ratio = theirs / mine if mine else float("inf")
            figures = f"{mine:.2f} {unit} | {theirs:.2f} {unit} | {ratio:.1f}"
            print(f"| {where} | {NAMES[what]} | {figures} |")


NAMES = {
    "save": "save",
    "lazy": "restore to the guest's first output, `--memory lazy`",
    "eager": "the same, `--memory eager`",
    "size": "on disk",
}
WITH = {"lazy": "restore", "eager": "restore"}  # QEMU has one way


if __name__ == "__main__":
    sys.exit(main())
