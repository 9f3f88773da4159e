"""``python -m benchmarks``: boot hosts, measure in them, and write the results.

Words on the command line choose what to measure; by default everything. Variables of the
environment: LKVM is the path of an lkvm for arm64, which is measured too; KEEP=1 puts the figures
into last.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import hosts, last, outside, parts, profile, report, rows, snapshots
from benchmarks.report import Table
from pyvmm.host import HostSettings, is_local
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running

OUT: Final = Path("build")
PROFILE, SNAPSHOTS, OUTSIDE = "profile", "snapshots", "outside"
WORDS: Final = (*dict.fromkeys((*rows.COUNTED, *rows.TIMED)), PROFILE, SNAPSHOTS, OUTSIDE)

COUNTED: Final = "Instructions"
ABOUT_COUNTED: Final = (
    "Modelled: QEMU TCG with -icount shift=0, one CPU. Its PMU counts the instructions of the "
    "VMM's threads, the kernel and the guest (perf_event_open, INST_RETIRED). A guest times "
    "accesses and disk requests itself, by its virtual counter, which also counts instructions in "
    "this host. "
    "Waiting counts nothing. Other load on the outer machine changes no count."
)
TIMED: Final = "Real time in the emulated host"
ABOUT_TIMED: Final = "Modelled: QEMU TCG, several CPUs, real time. It needs a quiet machine."
ABOUT_SNAPSHOTS: Final = (
    f"Modelled, real time: medians of {snapshots.ROUNDS}, with 2 vCPUs and 100 MiB of memory "
    "touched. pyvmm's save ends when the file is on the disk (fsync), and a restore checks it by "
    "SHA-256. QEMU's migration to a file does neither."
)
KEEP: Final = "KEEP"
ABOUT_OUTSIDE: Final = "Real time on the outer machine, from a command's start to its end."


def main(arguments: Sequence[str]) -> int:
    """Measure, and return the exit code."""
    unknown = [word for word in arguments if word not in WORDS]
    if unknown:
        sys.exit(f"benchmarks: {unknown[0]} is not one of {', '.join(WORDS)}")
    chosen = list(arguments) or list(WORDS)
    if is_local(HostSettings()):
        sys.exit("benchmarks need the emulated host of an x86-64 machine")
    lkvm = os.environ.get(parts.LKVM_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUT.absolute()) as scratch:
        session = Session(Path(scratch), Path(lkvm) if lkvm else None, Progress())
        session.measure(chosen)
    session.write(OUT)
    session.compare(keep=os.environ.get(KEEP) == "1")
    return 0


class Session:
    """One run of benchmarks: its results so far, and the hosts they come from."""

    def __init__(self, files: Path, lkvm: Path | None, progress: Progress) -> None:
        self._files = files
        self._lkvm = lkvm
        self._progress = progress
        self._about: dict[str, str] = {}
        self._tables: list[Table] = []
        self._results: dict[str, hosts.Results] = {}
        self._profile: profile.Found | None = None

    def measure(self, chosen: Sequence[str]) -> None:
        """Measure the parts that these words choose."""
        counted = [rows.COUNTED[word]() for word in rows.COUNTED if word in chosen]
        timed = [rows.TIMED[word]() for word in rows.TIMED if word in chosen]
        if counted or timed or {PROFILE, SNAPSHOTS} & set(chosen):
            parts.build(self._files, self._lkvm, self._progress)
        if counted or PROFILE in chosen:
            self._in_counted(counted, profiled=PROFILE in chosen)
        if timed or SNAPSHOTS in chosen:
            self._in_timed(timed, snapshot=SNAPSHOTS in chosen)
        if OUTSIDE in chosen:
            self._add(OUTSIDE.capitalize(), ABOUT_OUTSIDE, outside.ROWS, outside.measure())

    def _in_counted(self, chosen: Sequence[rows.Part], *, profiled: bool) -> None:
        wanted = [rows.check(), *chosen]
        with hosts.counted(HostSettings(), self._files, self._progress) as host:
            self._about |= _about(host, self._lkvm)
            found = hosts.measure(host, self._tasks(wanted), counted=True)
            self._profile = profile.measure(host, self._files) if profiled else None
        self._add(COUNTED, ABOUT_COUNTED, _rows(wanted), found, counted=True)

    def _in_timed(self, chosen: Sequence[rows.Part], *, snapshot: bool) -> None:
        with hosts.timed(HostSettings(), self._files, self._progress) as host:
            self._about |= _about(host, self._lkvm)
            if chosen:
                found = hosts.measure(host, self._tasks(chosen), counted=False)
                self._add(TIMED, ABOUT_TIMED, _rows(chosen), found)
            if snapshot:
                saved = snapshots.measure(host, OUT.absolute())
                self._add(SNAPSHOTS.capitalize(), ABOUT_SNAPSHOTS, snapshots.rows(), saved)

    def _tasks(self, wanted: Iterable[rows.Part]) -> list[dict[str, Any]]:
        lkvm = self._lkvm is not None
        return [task for part in wanted for task in part.tasks_of(lkvm=lkvm)]

    def _add(
        self,
        title: str,
        about: str,
        wanted: Iterable[rows.Row],
        found: hosts.Results,
        *,
        counted: bool = False,
    ) -> None:
        measured = report.measured(wanted, found, counted=counted)
        self._tables.append(Table(title, about, measured, counted))
        self._results[title] = found

    def write(self, out: Path) -> None:
        """Write bench.json and bench.md, and print bench.md."""
        about = _about_machine() | self._about
        found = report.document(about, self._tables, self._results) | {"profile": self._profile}
        (out / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
        text = report.markdown(about, self._tables)
        if self._profile is not None:
            text += "\n" + profile.markdown(self._profile)
        (out / "bench.md").write_text(text)
        print(text)

    def compare(self, *, keep: bool) -> None:
        """Say what got worse since the figures in the tree; ``keep``: then replace these."""
        before = last.read()
        found = list(last.worse(before, self._tables))
        since = before.get("about", {}).get("pyvmm", "no run")
        print(f"Worse than {last.FILE.name} ({since}):", *(found or ["nothing"]), sep="\n- ")
        if keep:
            last.keep(before, _about_machine() | self._about, self._tables)


def _rows(chosen: Iterable[rows.Part]) -> list[rows.Row]:
    return [row for part in chosen for row in part.rows]


def _about_machine() -> dict[str, str]:
    """Return the machine's model and pyvmm's commit."""
    model = next(
        (line.partition(":")[2].strip()
         for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "pyvmm": commit or "not a git checkout",
        "machine": f"{model}, {os.cpu_count()} CPUs, {memory} GiB, Linux {platform.release()}",
    }


def _about(host: Running, lkvm: Path | None) -> dict[str, Any]:
    """Return the host of the measurements, and what pyvmm is compared with."""
    peer = parts.peer(Progress(quiet=True)) / ".packages"
    packages = [line for line in peer.read_text().split() if line.startswith("qemu-system-arm")]
    ours = {} if lkvm is None else {"lkvm": f"{_version(lkvm)}, in the same host"}
    return ours | {
        "host": f"{host.description}, Linux {host.facts['kernel']}: all of it is modelled",
        "guest": "Debian 12's cloud kernel, 256 MiB; or a program of benchmarks/programs",
        "peer": f"{packages[0]}, -accel kvm, in the same host",
        "C floor": "benchmarks/programs/floor.c, a loop around KVM_RUN",
    }


def _version(lkvm: Path) -> str:
    """Return the checksum of an lkvm: its own version is that of the headers beside it."""
    return f"the program with SHA-256 {hashlib.sha256(lkvm.read_bytes()).hexdigest()[:16]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
