"""The hosts that are measured in: one whose time is instructions, one with time as it passes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.counters import PARANOID
from benchmarks.inside import KVM_STATS
from benchmarks.rows import INSIDE
from pyvmm.dirs import runtime_dir
from pyvmm.host import HostSettings, saved
from pyvmm.host.capture import capture
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running, stop
from pyvmm.host.start import boot_counted, start

PATIENCE_S: Final = 3600.0
DRIVER: Final = ("__init__.py", "counters.py", "inside.py")  # what runs inside

Results = dict[str, list[dict[str, float]]]


@contextmanager
def counted(settings: HostSettings, files: Path, progress: Progress) -> Iterator[Running]:
    """A host that counts instructions, with those files in its memory."""
    with progress.step("booting a host that counts instructions"):
        host = boot_counted(settings, _own_directory(), progress)
    with _stopped(host):
        _prepare(host, files)
        yield host


@contextmanager
def timed(settings: HostSettings, files: Path, progress: Progress) -> Iterator[Running]:
    """A host like any other, with those files in its memory."""
    own = _own_directory()
    own.mkdir(mode=0o700)
    try:
        with _stopped(start(settings, own / saved.key(settings), progress)) as host:
            _prepare(host, files)
            yield host
    finally:
        shutil.rmtree(own, ignore_errors=True)


def measure(host: Running, tasks: Sequence[dict[str, Any]], *, counted: bool) -> Results:
    """Do those tasks in a host."""
    command = ["sh", "-c", f"cd {INSIDE} && exec python3 -m benchmarks.inside"]
    found: Results = {}
    for task in tasks:
        print(f"bench: {task['name']} ...", file=sys.stderr, flush=True)
        data = json.dumps([task | {"counted": counted}]).encode()
        done = json.loads(capture(host, command, data, patience_s=PATIENCE_S))
        print(f"bench: {json.dumps(done)}", file=sys.stderr, flush=True)
        found |= done
    return found


def _own_directory() -> Path:
    """Where no command looks for hosts."""
    return runtime_dir() / f"bench-{os.getpid()}"


@contextmanager
def _stopped(host: Running) -> Iterator[Running]:
    try:
        yield host
    finally:
        stop(host)


def _prepare(host: Running, files: Path) -> None:
    """Have counting and KVM's statistics be for everyone, and the files in the host's memory."""
    # Debian's kernel is -1 for nobody but root, and debugfs too
    allow = (f"echo -1 >{PARANOID} && "
             f"mount -t debugfs -o mode=755 debugfs {KVM_STATS.parent}")  # fmt: skip
    capture(host, ["sh", "-c", allow], b"", as_root=True)
    driver = " ".join(str(Path(__file__).with_name(name).absolute()) for name in DRIVER)
    unpack = (f"mkdir -p {INSIDE}/peer {INSIDE}/benchmarks && cd {INSIDE} && cp {files}/* . && "
              f"cp {driver} benchmarks && tar -xf peer.tar -C peer && rm peer.tar")  # fmt: skip
    capture(host, ["sh", "-c", unpack], b"", patience_s=PATIENCE_S)
