"""``python -m benchmarks``: boot a host, measure in it, and write what was found.

Words on the command line choose: ``exits``, ``start``, ``linux``, ``disk``, ``smp``, ``outside``,
``profile``; all by default.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import parts, profile, report, rows
from benchmarks.rows import INSIDE, Row
from pyvmm.dirs import runtime_dir
from pyvmm.host import HostSettings, is_local
from pyvmm.host.capture import capture
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running, stop
from pyvmm.host.start import boot_counted, start

OUT: Final = Path("build")
PATIENCE_S: Final = 3600.0
KILO, MEGA = 1e3, 1e6
ALL: Final = ("exits", "start", "linux", "disk", "smp", "outside", "profile")
SMP: Final = (1, 2, 4)


def main(arguments: Sequence[str]) -> int:
    """Measure; the exit code."""
    chosen = [word for word in arguments if word in ALL] or list(ALL)
    progress, settings = Progress(), HostSettings()
    if is_local(settings):
        sys.exit("benchmarks run in the emulated host yet, on an x86-64 machine")
    tables: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUT.absolute()) as scratch:
        files = Path(scratch)
        parts.build(files, progress)
        parts.peer_archive(parts.peer(progress), files / "peer.tar")
        with _counted(settings, progress) as host:
            about = _about(host)
            wanted, tasks = _counted_part(chosen)
            tables[COUNTED] = report.measured(wanted, _measure(host, files, tasks))
            profiled = profile.measure(host, files) if "profile" in chosen else None
        if "smp" in chosen:
            with _timed(settings, progress) as host:
                wanted = [row for n in SMP for row in rows.linux_rows(n, "s", 1e9)]
                tasks = [task for n in SMP for task in rows.linux_tasks(n)]
                tables[TIMED] = report.measured(wanted, _measure(host, files, tasks))
    if "outside" in chosen:
        tables[OUTSIDE] = _outside()
    document = {"schema": 1, "about": about, "tables": tables, "profile": profiled}
    (OUT / "bench.json").write_text(json.dumps(document, indent=1) + "\n")
    text = report.markdown(about, tables)
    if profiled is not None:
        text += "\n" + profile.markdown(profiled)
    (OUT / "bench.md").write_text(text)
    print(text)
    return 0


COUNTED: Final = "Instructions (modelled: QEMU TCG -icount shift=0, one CPU; they repeat to 1 %)"
TIMED: Final = "Real time in the emulated host (modelled CPU; wants a quiet machine)"
OUTSIDE: Final = "Real time on the outer machine"


def _counted_part(chosen: Sequence[str]) -> tuple[list[Row], list[dict[str, Any]]]:
    """Which rows the host that counts has, and what is to be run for them."""
    wanted: list[Row] = []
    tasks: list[dict[str, Any]] = []
    if "exits" in chosen:
        wanted += rows.access_rows("thousand", KILO)
        tasks += rows.exit_tasks()
    if "start" in chosen:
        wanted += rows.start_rows("million", MEGA)
        tasks += rows.start_tasks()
    if "linux" in chosen:
        wanted += rows.linux_rows(1, "million", MEGA)
        tasks += rows.linux_tasks(1)
    if "disk" in chosen:
        wanted += rows.disk_rows("thousand", KILO)
        tasks += rows.disk_tasks()
    return wanted, tasks


@contextmanager
def _counted(settings: HostSettings, progress: Progress) -> Iterator[Running]:
    sockets = runtime_dir() / f"bench-{os.getpid()}"
    with progress.step("booting a host that counts instructions"):
        host = boot_counted(settings, sockets, progress)
    try:
        yield host
    finally:
        stop(host)


@contextmanager
def _timed(settings: HostSettings, progress: Progress) -> Iterator[Running]:
    from pyvmm.host import saved

    host = start(settings, runtime_dir() / saved.key(settings), progress)
    try:
        yield host
    finally:
        stop(host)


def _measure(
    host: Running, files: Path, tasks: list[dict[str, Any]]
) -> dict[str, list[dict[str, float]]]:
    """Take the files into the host's memory, and do the tasks there."""
    unpack = f"mkdir -p {INSIDE}/peer && cd {INSIDE} && cp {files}/* . && tar -xf peer.tar -C peer"
    capture(host, ["sh", "-c", f"{unpack} && rm peer.tar"], b"", patience_s=PATIENCE_S)
    driver = Path(__file__).with_name("inside.py").absolute()
    found: dict[str, list[dict[str, float]]] = {}
    for task in tasks:
        print(f"bench: {task['name']} ...", file=sys.stderr, flush=True)
        data = json.dumps([task]).encode()
        done = json.loads(capture(host, ["python3", str(driver)], data, patience_s=PATIENCE_S))
        print(f"bench: {json.dumps(done)}", file=sys.stderr, flush=True)
        found |= done
    return found


def _outside() -> list[dict[str, Any]]:
    """The emulated host's cold and warm start, and a command in one that runs."""
    command = [str(Path(sys.executable).with_name("pyvmm")), "run", "hello"]
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        runtime = Path(scratch)
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}

        def once(title: str) -> None:
            before = time.monotonic()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            passed = time.monotonic() - before
            none = dict.fromkeys(("plain", "peer", "ratio", "floor"))
            found.append({"row": title, "unit": "s", "pyvmm": passed, **none})

        once("pyvmm run hello, host started from its saved state")
        once("pyvmm run hello, host running")
        stop_all = [command[0], "host", "stop", "--all"]
        subprocess.run(stop_all, env=environment, check=True, capture_output=True)
    return found


def _about(host: Running) -> dict[str, str]:
    """Where it was measured."""
    model = next(
        (line.partition(":")[2].strip()
         for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    facts = host.facts
    peer = parts.peer(Progress(quiet=True)) / ".packages"
    packages = [line for line in peer.read_text().split() if line.startswith("qemu-system-arm")]
    return {
        "machine": f"{model}, {os.cpu_count()} CPUs, {shutil.disk_usage('/').total >> 30} GB disk",
        "host": f"{host.description}, Linux {facts['kernel']} (all of it is modelled)",
        "guest": "Debian 12's cloud kernel, 256 MiB; or a program of benchmarks/programs",
        "peer": f"{packages[0]}, -accel kvm, in the same host",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
