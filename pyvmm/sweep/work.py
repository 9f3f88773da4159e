"""Perform a run: ``pyvmm run`` as a process, on this machine or on an executor's worker.

Each run is a process of its own: it reaches an emulated host as a user's command does, and no run
can end another.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import BinaryIO

from pyvmm.base.records import Record, made
from pyvmm.errors import EXIT_FAILED, EXIT_OK, EXIT_TIMEOUT, EXIT_USAGE, HostError, UsageError
from pyvmm.host.client import IDLE_VARIABLE
from pyvmm.host.settings import HostSettings
from pyvmm.svecheck.probe import Probe
from pyvmm.sweep.plan import Run, host_name

# -P: Python imports no module of the current directory instead of pyvmm.
COMMAND = (sys.executable, "-P", "-m", "pyvmm")
TAKEN = 1 << 20  # bytes: the last part of a guest's output, which is kept
HOST_S = 600.0  # beyond a guest's timeout, to make an emulated host
GRACE_S = 5.0  # between asking a run to end and killing it
POLL_S = 0.05
IDLE_S = "60"  # for hosts other than the default one; the user's variable overrides it


class RunOutput(Record, kw_only=True):
    """The exit code and output of a run, and the machine that did it.

    ``left_out`` counts the bytes before ``stdout``. A run that the sweep ended is ``stopped``.
    """

    code: int
    seconds: float
    stdout: bytes
    stderr: bytes
    left_out: int = 0
    stopped: bool = False
    machine: str = made(platform.node)


def perform(run: Run, stop: Event | None = None) -> RunOutput:
    """Perform a run, until it ends or ``stop`` is set."""
    limit = None if run.guest.timeout_s is None else run.guest.timeout_s + HOST_S
    with _placed(run) as (image, initrd):
        return _process(run.arguments(image, initrd), run.where, limit, stop or Event())


def command_line(run: Run) -> str:
    """Return the command that a user would type for the run."""
    return shlex.join(["pyvmm", *run.arguments(run.guest.image, run.guest.initrd)])


class HostQuery(Record):
    """A host to ask for its vector lengths, and the command that prints them as JSON."""

    where: HostSettings
    command: tuple[str, ...]


def ask(query: HostQuery, stop: Event | None = None) -> Probe:
    """Return the vector lengths of a host; start the host if it does not run.

    Raises: HostError, UsageError, in the words of the host's own pyvmm.
    """
    where = query.where
    done = _process(query.command, where, HOST_S, stop or Event())
    if done.code in (EXIT_OK, EXIT_FAILED):  # 1: KVM and the host's programs disagree
        with contextlib.suppress(ValueError):
            return Probe.of(json.loads(done.stdout), host_name(where))
    message, hint = last_words(done.stderr.decode(errors="replace"))
    kind = UsageError if done.code == EXIT_USAGE else HostError
    raise kind(message or f"{host_name(where)}: no answer", hint=hint)


def last_words(stderr: str) -> tuple[str, str | None]:
    """Return pyvmm's last message, and its hint."""
    lines = stderr.rstrip().split("\n")
    hint = None
    if lines[-1].startswith("  hint: "):
        hint = lines.pop().removeprefix("  hint: ")
    return (lines[-1] if lines else "").removeprefix("pyvmm: "), hint


@contextlib.contextmanager
def _placed(run: Run) -> Iterator[tuple[str, str | None]]:
    """Yield the paths of the guest's files; write those that came with the run."""
    guest = run.guest
    if not guest.files:
        yield guest.image, guest.initrd
        return
    with tempfile.TemporaryDirectory(prefix="pyvmm-sweep-") as scratch:
        paths = []
        for number, (name, data) in enumerate(guest.files):  # two may have the same name
            path = Path(scratch, str(number), name)
            path.parent.mkdir()
            path.write_bytes(data)
            paths.append(str(path))
        yield paths[0], paths[1] if len(paths) > 1 else None


def _process(
    arguments: Sequence[str], where: HostSettings, limit_s: float | None, stop: Event
) -> RunOutput:
    """Run pyvmm with those arguments."""
    # A sweep may need each of many hosts only once.
    idle = {IDLE_VARIABLE: IDLE_S} if where.customised else {}
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**idle, **os.environ},
            process_group=0,  # Ctrl-C signals the sweep alone, which ends its runs
        )
        try:
            late = _wait(process, limit_s, stop)
        finally:
            asked = _end(process)
        stdout, left_out = _tail(out)
        return RunOutput(
            code=EXIT_TIMEOUT if late else process.returncode,
            seconds=time.monotonic() - started,
            stdout=stdout,
            stderr=_tail(err)[0] + (b"pyvmm: the run did not end in time\n" if late else b""),
            left_out=left_out,
            # The code may be any: Python ends with 1 if the signal comes while it starts.
            stopped=asked and not late and process.returncode != EXIT_OK,
        )


def _wait(process: subprocess.Popen[bytes], limit_s: float | None, stop: Event) -> bool:
    """Wait until the process ends, ``stop`` is set or time is up; return whether time is up."""
    deadline = float("inf") if limit_s is None else time.monotonic() + limit_s
    while process.poll() is None and not stop.wait(POLL_S):
        if time.monotonic() > deadline:
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End a process that still runs; return whether it did."""
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return True


def _tail(file: BinaryIO) -> tuple[bytes, int]:
    """Return the last bytes of a file, and how many are before them."""
    left_out = max(0, file.seek(0, 2) - TAKEN)
    file.seek(left_out)
    return file.read(), left_out
