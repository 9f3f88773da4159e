"""The hosts for measurements: one whose time is instructions, one with real time."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.counters import PARANOID
from benchmarks.inside import KVM_STATS
from benchmarks.rows import INSIDE
from pyvmm.base.dirs import runtime_dir
from pyvmm.host import HostSettings, saved
from pyvmm.host.capture import capture
from pyvmm.host.parts import trees
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running, stop
from pyvmm.host.share import ALL, Needs
from pyvmm.host.start import boot, fetch, fresh, plan_for, publish, signals_unwind, start

PATIENCE_S: Final = 3600.0
# The program that runs inside
DRIVERS: Final = ("__init__.py", "counters.py", "inside.py", "_snapshots_inside.py")

Results = dict[str, list[dict[str, float]]]


@contextmanager
def counted(settings: HostSettings, files: Path, progress: Progress) -> Iterator[Running]:
    """Boot a host that counts instructions, with those files in its memory."""
    with progress.step("booting a host that counts instructions"):
        host = _boot_counted(settings, _own_directory(), progress)
    with _stopped(host):
        _prepare(host, files)
        yield host


@contextmanager
def timed(settings: HostSettings, files: Path, progress: Progress) -> Iterator[Running]:
    """Boot an ordinary host, with those files in its memory."""
    own = _own_directory()
    own.mkdir(mode=0o700)
    try:
        fetch(settings, progress)
        made_of = trees.chosen(settings)
        name = saved.key(settings, made_of)
        with _stopped(start(settings, made_of, own / name, progress)) as host:
            _prepare(host, files)
            yield host
    finally:
        shutil.rmtree(own, ignore_errors=True)


def say(text: str) -> None:
    """Report the progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure(host: Running, tasks: Sequence[dict[str, Any]], *, counted: bool) -> Results:
    """Run tasks in a host, and return their results."""
    found: Results = {}
    for task in tasks:
        say(f"{task['name']} ...")
        data = json.dumps([task | {"counted": counted}]).encode()
        done = json.loads(drive(host, "inside", [], data))
        say(json.dumps(done))
        found |= done
    return found


def drive(
    host: Running,
    driver: str,
    arguments: Sequence[str],
    data: bytes = b"",
    needs: Needs | None = None,
) -> bytes:
    """Run a driver in a host and return its output; its pyvmm is the host's.

    By default it sees none of the user's files: Python would search for modules among them, through
    9p. The locale is C, so that no program searches for translations.
    """
    script = f'cd {INSIDE} && LC_ALL=C exec python3 -m benchmarks.{driver} "$@"'
    command = ["sh", "-c", script, "sh", *arguments]
    return capture(host, command, data, timeout_s=PATIENCE_S, needs=needs)


def _boot_counted(settings: HostSettings, sockets: Path, progress: Progress) -> Running:
    """Boot a host in which time counts instructions; it is not saved.

    Two runs of a command in it take the same time to about 1 %, under any load of this machine.
    """
    plan = plan_for(settings, None, progress).replace(counted=True)
    with signals_unwind(), tempfile.TemporaryDirectory(prefix="pyvmm-") as scratch:
        with fresh(sockets) as alive:
            pid, facts = boot(settings, plan, Path(scratch), sockets, alive, progress)
        return publish(sockets, pid, facts)


def _own_directory() -> Path:
    """Use a runtime directory where no command looks for hosts."""
    return runtime_dir() / f"bench-{os.getpid()}"


@contextmanager
def _stopped(host: Running) -> Iterator[Running]:
    try:
        yield host
    finally:
        stop(host)


def _prepare(host: Running, files: Path) -> None:
    """Allow every user to count and to read KVM's statistics; copy the files into memory."""
    # Debian's kernel lets only root count and read debugfs.  Each command has a copy of init's
    # mounts, so the mount has to be init's.
    allow = f"echo -1 >{PARANOID} && mount -t debugfs -o mode=755 debugfs {KVM_STATS.parent}"
    in_init = ["busybox", "nsenter", "-t", "1", "-m", "sh", "-c", allow]
    capture(host, in_init, b"", as_root=True)
    drivers = " ".join(str(Path(__file__).with_name(name).absolute()) for name in DRIVERS)
    unpack = (f"mkdir -p {INSIDE}/peer {INSIDE}/benchmarks && cd {INSIDE} && cp {files}/* . && "
              f"cp {drivers} benchmarks && tar -xf peer.tar -C peer && rm peer.tar")  # fmt: skip
    capture(host, ["sh", "-c", unpack], b"", timeout_s=PATIENCE_S, needs=ALL)
