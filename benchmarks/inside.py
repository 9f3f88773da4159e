"""Inside the host: runs one command after the other, and tells what each spent by when.

A task is read from standard input as JSON, and what was found is printed as JSON. Nothing of
pyvmm is imported: this is a stop watch. Where tasks are ``counted`` it goes by the instructions
the machine has executed (see counters.py), else by time.

Where it counts, what it does itself is counted too, and there is but one CPU: so it looks at a
command's output only every now and then. The guests wait for it after each word it waits for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.counters import Counter

DISK_SIZE: Final = 64 << 20
INPUT: Final = b"." * 2001  # what the exits guest takes
OUT_SIZE: Final = 1 << 18  # what the console guest writes, and reads
IN_SIZE: Final = 1 << 15
LOOK_S: Final = 0.05  # between two looks at the output, of a clock that counts instructions
PIPE_SIZE: Final = 1 << 20
KVM_STATS: Final = Path("/sys/kernel/debug/kvm")

Found = dict[str, float]


class Moment(NamedTuple):
    """How much output there was when, and what had been spent."""

    size: int
    spent: int
    clock: int

    @property
    def idle(self) -> int:
        """For how many ns of a counting host's clock nothing had been done."""
        return self.clock - self.spent


class Said(NamedTuple):
    """What a guest has counted: a line of NAME TICKS COUNT that ends there in its output."""

    name: str
    ticks: int
    times: int
    end: int


class Run:
    """A command that runs: its output so far, and what has been spent on it.

    ``patient``: its output is looked at now and then, where that would be in what is counted.
    """

    def __init__(self, task: dict[str, Any], *, patient: bool = True) -> None:
        self.counted = bool(task["counted"])
        self.output = b""
        self._moments: list[Moment] = []
        self._patient = patient and self.counted
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        gate, start = os.pipe()
        stdin, self._input = os.pipe()
        self._reader, stdout = os.pipe()
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.pid = os.fork()
        if not self.pid:
            _become(task, gate, (stdin, stdout, self._errors.fileno()))
        for fd in (gate, stdin, stdout):
            os.close(fd)
        self._counter = Counter() if self.counted else None
        self.began_ns = time.monotonic_ns()
        os.write(start, b"!")
        os.close(start)

    def spent(self) -> int:
        """Instructions since its start, or ns."""
        return self._counter.read() if self._counter else self.clock()

    def clock(self) -> int:
        """Ns since its start, whatever is counted."""
        return time.monotonic_ns() - self.began_ns

    def wait_for(self, text: bytes) -> int:
        """What had been spent when it had said ``text``."""
        while text not in self.output:
            if not self._read():
                self._errors.seek(0)
                said = self._errors.read().decode(errors="replace")[-2000:]
                raise SystemExit(f"no {text!r} in {self.output[-500:]!r}; it said {said}")
        return self.moment(self.output.index(text) + len(text)).spent

    def read_all(self) -> None:
        """Read what it prints to its end."""
        while self._read():
            pass

    def _read(self) -> bool:
        if self._patient:
            time.sleep(LOOK_S)
        data = os.read(self._reader, PIPE_SIZE)
        self.output += data
        self._moments.append(Moment(len(self.output), self.spent(), self.clock()))
        return bool(data)

    def moment(self, size: int) -> Moment:
        """When there was that much output."""
        return next(moment for moment in self._moments if moment.size >= size)

    def type(self, data: bytes) -> None:
        """Give it input."""
        while data:
            data = data[os.write(self._input, data) :]

    def resident_kib(self) -> int:
        """Its RSS now."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0])

    def exits(self) -> Found:
        """What KVM has counted of its VM's exits."""
        (stats,) = KVM_STATS.glob(f"{self.pid}-*")
        names = ("exits", "mmio_exit_user", "mmio_exit_kernel", "wfi_exit_stat")
        return {name: float((stats / name).read_text(encoding="ascii")) for name in names}

    def end(self) -> None:
        """Kill it, where it still runs, and bury it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)
        os.close(self._input)
        self._errors.close()
        if self._counter:
            self._counter.close()


def _become(task: dict[str, Any], gate: int, streams: tuple[int, int, int]) -> None:
    """In a child: execute the command, when it is told to by the gate."""
    try:
        os.read(gate, 1)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.execvpe(task["argv"][0], task["argv"], {**os.environ, **task["environment"]})
    finally:
        os._exit(127)


def first(task: dict[str, Any]) -> Found:
    """From exec to the first line of output; and the RSS then."""
    run = Run(task)
    spent = run.wait_for(b"\n")
    resident = run.resident_kib()
    run.end()
    return {"spent": spent, "rss_kib": resident}


def work(task: dict[str, Any]) -> Found:
    """What was spent between a guest's two lines, by counting and by the clock."""
    run = Run(task, patient=False)
    began, clock_began = run.wait_for(b"\n"), run.clock()
    ended, clock_ended = run.wait_for(b"\n\n"), run.clock()
    run.end()
    return {"spent": ended - began, "clock": clock_ended - clock_began}


def linux(task: dict[str, Any]) -> Found:
    """From exec to a Linux guest's init, its RSS and exits there, and what 64 lines took."""
    run = Run(task)
    to_init = run.wait_for(b"pyvmm-bench: init")
    found = {"spent": to_init, "rss_kib": run.resident_kib(), **run.exits()}
    to_end = run.wait_for(b"pyvmm-bench: end")
    run.end()
    if run.counted:  # else the guest's waiting is in it
        found["line"] = (to_end - to_init) / 64
    return found


def lines(task: dict[str, Any]) -> Found:
    """What the exits guest says of itself, for each access."""
    run = Run(task)
    run.wait_for(b"input\n")
    run.type(INPUT)
    run.wait_for(b"byte_in ")
    run.read_all()
    run.end()
    said = {line.name: line for line in said_in(run.output)}
    ns = 1e9 / said.pop("frequency").ticks
    return {name: line.ticks * ns / line.times for name, line in said.items()}


def disk(task: dict[str, Any]) -> Found:
    """What the block guest says of itself, for each request, less what the machine was idle.

    The guest says something only between two kinds of requests. Its disk is made anew.
    """
    Path(task["disk"]).write_bytes(bytes(DISK_SIZE))
    run = Run(task, patient=False)
    run.wait_for(b"frequency ")
    run.wait_for(b"reboot: Power down")
    run.end()
    begin, *said, frequency = said_in(run.output)
    found: Found = {}
    idle_before = run.moment(begin.end).idle
    for line in said:
        idle = run.moment(line.end).idle
        ns = line.ticks * 1e9 / frequency.ticks - (idle - idle_before)
        found[line.name], idle_before = ns / line.times, idle
    return found


def said_in(output: bytes) -> Iterator[Said]:
    """What a guest says of itself, among what else it says (and dots)."""
    end = 0
    for line in output.splitlines(keepends=True):
        end += len(line)
        words = line.decode(errors="replace").replace(".", "").split()
        if len(words) == 3 and words[1].isdecimal() and words[2].isdecimal():
            yield Said(words[0], int(words[1]), int(words[2]), end)


def console(task: dict[str, Any]) -> Found:
    """What a KiB costs a Linux guest's virtio console, out and in, and MB/s where it is timed."""
    run = Run(task)
    out_began = run.wait_for(b"\nout\n")
    out_ended = run.wait_for(b"\nin\n")
    if not run.counted:  # the guest has waited before it wrote
        out_began = run.moment(run.output.index(b"\nout\n.") + len(b"\nout\n.")).spent
    in_began = run.spent()
    run.type(b"." * IN_SIZE)
    in_ended = run.wait_for(b"\nend\n")
    run.end()
    out, taken = out_ended - out_began, in_ended - in_began
    found: Found = {"out": out / (OUT_SIZE >> 10), "in": taken / (IN_SIZE >> 10)}
    if not run.counted:
        found |= {"out_rate": OUT_SIZE * 1e3 / out, "in_rate": IN_SIZE * 1e3 / taken}
    return found


def number(task: dict[str, Any]) -> Found:
    """What a program prints, which is one number."""
    done = subprocess.run(task["argv"], capture_output=True, check=True)
    return {"spent": float(done.stdout)}


KINDS: Final = {"first": first, "work": work, "linux": linux, "lines": lines, "disk": disk,
                "console": console, "number": number}  # fmt: skip


def main() -> None:
    """Do the tasks of standard input."""
    tasks = json.load(sys.stdin)
    os.chdir("/")  # what a Python that is measured imports, it looks for here first
    found: dict[str, list[Found]] = {}
    for task in tasks:
        for _ in range(task["times"]):
            found.setdefault(task["name"], []).append(KINDS[task["kind"]](task))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
