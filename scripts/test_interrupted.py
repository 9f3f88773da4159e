#!/usr/bin/env python3
"""Interrupt the first `make run`, run it again, and check that it succeeds.

Usage: test_interrupted.py [MOMENT...]     the numbers of some moments; by default all ten

Each moment has a fresh clone of HEAD and an empty cache, in a temporary directory.  The script
waits for a line of output of `make run`, then some seconds more, and sends a signal to its process
group.  Only an emulated host that is up may still run then.  The second run has to end like a first
one, without temporary files left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
GUEST_SAYS: Final = "SVE vector lengths: 128 256"
PATIENCE_S: Final = 900.0
END_S: Final = 10.0  # the time that an interrupted process may take to end


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of interruption: seconds after a line with that text, and the signal."""

    text: str
    seconds: float
    signal: signal.Signals

    def __str__(self) -> str:
        return f"{self.signal.name} {self.seconds:g} s after {self.text!r}"


MOMENTS: Final = (
    Moment("making .venv", 1.0, signal.SIGINT),
    Moment("installing pyvmm", 3.0, signal.SIGKILL),
    Moment("getting cross-gcc", 4.0, signal.SIGINT),
    Moment("getting cross-gcc from Debian bookworm: done", 0.6, signal.SIGKILL),
    Moment("getting QEMU", 3.0, signal.SIGKILL),
    Moment("getting Linux", 3.0, signal.SIGINT),
    Moment("making the emulated host's root", 0.5, signal.SIGKILL),
    Moment("compiling the KVM extension for arm64: done", 4.0, signal.SIGKILL),
    Moment("compiling the KVM extension for arm64: done", 4.0, signal.SIGINT),
    Moment("booting the emulated host once (Linux 6.1, QEMU 7.2, -cpu max,sve2048=on): done", 0.3,
           signal.SIGINT),
)  # fmt: skip


def main() -> int:
    """Try the chosen moments; return 0 if all succeeded."""
    numbers = [int(word) for word in sys.argv[1:]] or range(1, len(MOMENTS) + 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up first
    # A shell starts a background job with SIGINT ignored, and make would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = 0
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="interrupted-") as scratch:
            complaints = _try(MOMENTS[number - 1], Path(scratch))
        print(f"{number:2} {MOMENTS[number - 1]}: {'; '.join(complaints) or 'well'}", flush=True)
        failed += bool(complaints)
    return int(failed > 0)


def _try(moment: Moment, scratch: Path) -> list[str]:
    """Interrupt a first `make run`, run it again, and return what was wrong."""
    places = {"XDG_CACHE_HOME": "cache", "XDG_RUNTIME_DIR": "run", "TMPDIR": "tmp"}
    for name in places.values():
        (scratch / name).mkdir(mode=0o700)
    environment = {**os.environ, **{key: str(scratch / name) for key, name in places.items()}}
    clone = scratch / "a clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    try:
        return [*_interrupt(moment, clone, environment), *_again(scratch, clone, environment)]
    finally:
        for pid in _running(scratch):
            os.kill(pid, signal.SIGKILL)


def _interrupt(moment: Moment, clone: Path, environment: Mapping[str, str]) -> Iterator[str]:
    log = clone.with_name("first.log")
    with log.open("wb") as file:
        first = subprocess.Popen(
            ["make", "run"], cwd=clone, env=environment, stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while moment.text not in log.read_text(errors="replace"):
        if first.poll() is not None or time.monotonic() > deadline:
            yield f"the first run never came there: {log.read_text(errors='replace')[-500:]}"
            break
        time.sleep(0.02)
    time.sleep(moment.seconds)
    if first.poll() is not None:
        yield "the first run was over"
        return
    os.killpg(first.pid, moment.signal)
    if first.wait() == 0:
        yield "the first run ended with 0"
    if moment.signal == signal.SIGINT:
        if "Traceback" in log.read_text(errors="replace"):
            yield f"a traceback: {log.read_text(errors='replace')[-2000:]}"
        yield from _left_running(clone.parent)


def _left_running(scratch: Path) -> Iterator[str]:
    """Return the processes that still run after END_S, without an emulated host that is up."""
    deadline = time.monotonic() + END_S
    while left := [] if list(scratch.glob("run/pyvmm/*/about.json")) else _running(scratch):
        if time.monotonic() > deadline:
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes()[:200] for pid in left]
            yield f"left running: {commands}"
            return
        time.sleep(0.05)


def _again(scratch: Path, clone: Path, environment: Mapping[str, str]) -> Iterator[str]:
    started = time.monotonic()
    second = subprocess.run(
        ["make", "run"], cwd=clone, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    print(f"   run again: {time.monotonic() - started:.0f} s", flush=True)
    if second.returncode or GUEST_SAYS not in second.stdout.splitlines():
        yield f"the second run ended with {second.returncode}: {second.stdout[-1000:]}"
    stopped = subprocess.run(
        [clone / ".venv/bin/pyvmm", "host", "stop", "--all"], env=environment, capture_output=True
    )
    if stopped.returncode:
        yield f"the host does not stop: {stopped.stderr.decode()}"
    yield from _left_running(scratch)
    left = [*scratch.glob("cache/pyvmm/*/.*.tmp-*"), *scratch.glob("tmp/pyvmm-*")]
    if left:
        yield f"left over: {', '.join(str(path.relative_to(scratch)) for path in left)}"


def _running(scratch: Path) -> list[int]:
    """Return the processes that have the scratch directory in their environment."""
    mark = f"={scratch}/cache\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes() and (path.parent / "cmdline").read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended, or belongs to another user
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
