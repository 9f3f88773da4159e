"""Profile the instructions of a start and of a Linux guest's boot: ``make bench BENCH=profile``.

Python itself measures imports (-X importtime). Wrapped functions of the run measure the rest: see
_profiled.py. Both add a little, so the sum is somewhat more than a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.rows import INSIDE, LIBRARY, SMALL, pyvmm
from pyvmm.host.capture import capture
from pyvmm.host.running import Running
from pyvmm.host.share import ALL

MEGA: Final = 1e6
PATIENCE_S: Final = 3600.0
MODULES: Final = 30  # shown one by one
FILES: Final = ("_profile_inside.py", "_profiled.py")
ENVIRONMENT: Final = ("env", f"PYTHONPATH={LIBRARY}", "PYTHONNOUSERSITE=1", "LC_ALL=C", "HOME=/")

Found = Mapping[str, Any]
Rows = list[tuple[str, float]]


def measure(host: Running, files: Path) -> Found:
    """Profile a run of a Linux Image, and the boot of a Linux guest with its full log."""
    for name in FILES:
        (files / name).write_bytes(Path(__file__).with_name(name).read_bytes())
    log = ("-c", "1", "-m", "256", "-i", f"{INSIDE}/initrd", "-p", "loglevel=7")
    task = {
        "start": _arguments(pyvmm("first-linux", *SMALL)),
        "linux": _arguments(pyvmm("Image", *log)),
    }
    copy = " ".join(f"{files}/{name}" for name in FILES)
    capture(host, ["sh", "-c", f"cp {copy} {INSIDE}/"], b"", timeout_s=PATIENCE_S, needs=ALL)
    command = [*ENVIRONMENT, "python3", f"{INSIDE}/{FILES[0]}"]
    found: Found = json.loads(
        capture(host, command, json.dumps(task).encode(), timeout_s=PATIENCE_S, needs=ALL)
    )
    return found


def _arguments(argv: list[str]) -> list[str]:
    return argv[argv.index("run") :]


def markdown(found: Found) -> str:
    """Return the profile as Markdown."""
    start, linux = list(start_rows(found)), list(linux_rows(found))
    lines = ["## Where a start's instructions go", ""]
    lines += _table("from exec to a Linux Image's first store", start)
    lines += ["", f"The {MODULES} modules that take the most, without those they import:", ""]
    lines += _table("module", module_rows(found)[:MODULES])
    lines += ["", "## Where those of a Linux guest's boot go, after that", ""]
    lines += _table("from the first exit to Linux's init, the full log on the UART", linux)
    return "\n".join(lines) + "\n"


def start_rows(found: Found) -> Iterator[tuple[str, float]]:
    """Return the phases of a start in their order, in million instructions."""
    groups = {"click, and what it imports": 0.0, "more of the standard library": 0.0, "pyvmm": 0.0}
    counts = dict.fromkeys(groups, 0)
    for name, ns in module_rows(found):
        group = _group(name, found)
        groups[group] += ns
        counts[group] += 1
    yield "the interpreter", found["interpreter"] / MEGA
    for group, ns in groups.items():
        yield f"import of {counts[group]} modules: {group}", ns
    for phase, ns in found["start"]["phases"].items():
        yield phase, ns / MEGA


def module_rows(found: Found) -> Rows:
    """Return the modules that a run imports beside the interpreter's, the most expensive first."""
    at_once = set(found["at_once"])
    rows = [(name, ns / MEGA) for name, ns in found["imports"] if name not in at_once]
    return sorted(rows, key=lambda row: row[1], reverse=True)


def _group(name: str, found: Found) -> str:
    if name.partition(".")[0] == "pyvmm":
        return "pyvmm"
    is_click = name in found["click"]
    return "click, and what it imports" if is_click else "more of the standard library"


def linux_rows(found: Found) -> Iterator[tuple[str, float]]:
    """Return the parts of a boot, in million instructions."""
    linux = found["linux"]
    exits = sorted(linux["exits"].items(), key=lambda item: item[1][1], reverse=True)
    handled = sum(ns for _, (_, ns) in exits)
    whole = linux["end"] - linux["first"]
    yield "the guest, KVM, and exits completed in C", linux["in_kvm"] / MEGA
    for cause, (count, ns) in exits:
        yield f"exits to Python: {cause}, {count} times", ns / MEGA
    yield "other threads, and the rest", (whole - handled - linux["in_kvm"]) / MEGA


def _table(title: str, rows: Iterable[tuple[str, float]]) -> list[str]:
    shown = list(rows)
    lines = [f"| {title} | million instructions |", "|---|--:|"]
    lines += [f"| {name} | {number:.2f} |" for name, number in shown]
    return [*lines, f"| all of these | {sum(number for _, number in shown):.1f} |"]
