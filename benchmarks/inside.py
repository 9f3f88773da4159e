"""Inside the host: run one command after the other, and measure the cost of each.

It reads a task from standard input as JSON and prints the results as JSON. It is a stop watch and
imports nothing of pyvmm. For ``counted`` tasks it reads the instructions of the machine (see
counters.py), else the time.

On the one CPU of a counted host its own work counts too. So it looks at a command's output only
from time to time. The guests pause after each word that it waits for.
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
INPUT: Final = b"." * 2065  # input of the exits guest
LINE: Final = b"." * 100 + b"\n"  # input of a Linux guest; QEMU's driver drops the first 32 bytes
OUT_SIZE: Final = 1 << 18  # output and input of the console guest
IN_SIZE: Final = 1 << 15
LOOK_S: Final = 0.05  # between two looks at the output; the clock counts instructions
RARELY_S: Final = 0.5  # the same for output that the pipe holds until all of it is there
PIPE_SIZE: Final = 1 << 20
KVM_STATS: Final = Path("/sys/kernel/debug/kvm")

Found = dict[str, float]


class Moment(NamedTuple):
    """An amount of output, its time, and the cost up to it."""

    size: int
    spent: int
    clock: int

    @property
    def idle(self) -> int:
        """The idle time in ns, by the clock of a counting host."""
        return self.clock - self.spent


class Said(NamedTuple):
    """A measurement of a guest: a line NAME TICKS COUNT, and where it ends in the output."""

    name: str
    ticks: int
    times: int
    end: int


class Run:
    """A running command: its output so far, and its cost.

    ``patient``: look at its output from time to time only, because looking counts too.
    """

    def __init__(self, task: dict[str, Any], *, patient: bool = True) -> None:
        self.counted = bool(task["counted"])
        self.output = b""
        self._moments: list[Moment] = []
        self.look_s = LOOK_S if patient and self.counted else 0.0
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
        """Return the ns since its start, also in a counting host."""
        return time.monotonic_ns() - self.began_ns

    def wait_for(self, text: bytes) -> int:
        """Wait for ``text`` in the output, and return the cost up to it."""
        while text not in self.output:
            if not self._read():
                self._errors.seek(0)
                said = self._errors.read().decode(errors="replace")[-2000:]
                raise SystemExit(f"no {text!r} in {self.output[-500:]!r}; it said {said}")
        return self.moment(self.output.index(text) + len(text)).spent

    def read_all(self) -> None:
        """Read its output to the end."""
        while self._read():
            pass

    def _read(self) -> bool:
        if self.look_s:
            time.sleep(self.look_s)
        data = os.read(self._reader, PIPE_SIZE)
        self.output += data
        self._moments.append(Moment(len(self.output), self.spent(), self.clock()))
        return bool(data)

    def moment(self, size: int) -> Moment:
        """Return the moment when there was that much output."""
        return next(moment for moment in self._moments if moment.size >= size)

    def type(self, data: bytes) -> None:
        """Give it input."""
        while data:
            data = data[os.write(self._input, data) :]

    def resident_kib(self) -> int:
        """Return its RSS."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0])

    def exits(self) -> Found:
        """Return KVM's count of its VM's exits."""
        (stats,) = KVM_STATS.glob(f"{self.pid}-*")
        names = ("exits", "mmio_exit_user", "mmio_exit_kernel", "wfi_exit_stat")
        return {name: float((stats / name).read_text(encoding="ascii")) for name in names}

    def end(self) -> None:
        """Kill it if it still runs, and reap it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)
        os.close(self._input)
        self._errors.close()
        if self._counter:
            self._counter.close()


def _become(task: dict[str, Any], gate: int, streams: tuple[int, int, int]) -> None:
    """Execute the command in a child, when the gate opens."""
    try:
        os.read(gate, 1)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.execvpe(task["argv"][0], task["argv"], {**os.environ, **task["environment"]})
    finally:
        os._exit(127)


def first(task: dict[str, Any]) -> Found:
    """Measure from exec to the first line of output, and the RSS then."""
    run = Run(task)
    spent = run.wait_for(b"\n")
    resident = run.resident_kib()
    run.end()
    return {"spent": spent, "rss_kib": resident}


def work(task: dict[str, Any]) -> Found:
    """Measure the cost between two lines of a guest, by counter and by clock."""
    run = Run(task, patient=False)
    began, clock_began = run.wait_for(b"\n"), run.clock()
    ended, clock_ended = run.wait_for(b"\n\n"), run.clock()
    run.end()
    return {"spent": ended - began, "clock": clock_ended - clock_began}


def linux(task: dict[str, Any]) -> Found:
    """Measure from exec to a Linux guest's init, RSS and exits there, and the cost of 64 lines."""
    run = Run(task)
    to_init = run.wait_for(b"pyvmm-bench: init")
    found = {"spent": to_init, "rss_kib": run.resident_kib(), **run.exits()}
    to_end = run.wait_for(b"pyvmm-bench: end")
    run.end()
    if run.counted:  # without the guest's pause
        found["line"] = (to_end - to_init) / 64
    return found


def typed(task: dict[str, Any]) -> Found:
    """Measure from exec until a Linux guest's init has a line of input that was there at once."""
    run = Run(task)
    run.type(LINE)
    spent = run.wait_for(b"pyvmm-bench: typed")
    run.end()
    return {"spent": spent}


def lines(task: dict[str, Any]) -> Found:
    """Return the exits guest's own measurement of each access."""
    run = Run(task)
    run.wait_for(b"input\n")
    run.type(INPUT)
    run.wait_for(b"byte_in ")
    return _said_to_the_end(run)


def lines_out(task: dict[str, Any]) -> Found:
    """Do the same with an exits guest that takes no input."""
    return _said_to_the_end(Run(task))


def _said_to_the_end(run: Run) -> Found:
    run.read_all()
    run.end()
    said = {line.name: line for line in said_in(run.output)}
    ns = 1e9 / said.pop("frequency").ticks
    return {name: line.ticks * ns / line.times for name, line in said.items()}


def disk(task: dict[str, Any]) -> Found:
    """Return the block guest's measurement of each request; its disk is a new file."""
    Path(task["disk"]).write_bytes(bytes(DISK_SIZE))
    return requests(task)


def requests(task: dict[str, Any]) -> Found:
    """Return a guest's own measurement of each request, without the machine's idle time.

    The guest prints only between two kinds of requests.
    """
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
    """Return the measurements in a guest's output, which has other words and dots."""
    end = 0
    for line in output.splitlines(keepends=True):
        end += len(line)
        words = line.decode(errors="replace").replace(".", "").split()
        if len(words) == 3 and words[1].isdecimal() and words[2].isdecimal():
            yield Said(words[0], int(words[1]), int(words[2]), end)


def console(task: dict[str, Any]) -> Found:
    """Measure a KiB on a Linux guest's virtio console, out and in; MB/s if it is timed.

    Looks count too, and a guest that reads takes a second of the clock. So there is one look at its
    output, and none while it reads and prints nothing.
    """
    run = Run(task, patient=False)
    found = _out(run)
    run.look_s = 0.0
    began = run.spent()
    run.type(b"." * IN_SIZE)
    taken = run.wait_for(b"\nend\n") - began
    run.end()
    found["in"] = taken / (IN_SIZE >> 10)
    if not run.counted:
        found["in_rate"] = IN_SIZE * 1e3 / taken
    return found


def console_out(task: dict[str, Any]) -> Found:
    """Measure only the way out."""
    run = Run(task, patient=False)
    found = _out(run)
    run.end()
    return found


def _out(run: Run) -> Found:
    began = run.wait_for(b"\nout\n")
    if run.counted:
        run.look_s = RARELY_S
    ended = run.wait_for(b"\nin\n")
    if not run.counted:  # the guest waits before it writes
        began = run.moment(run.output.index(b"\nout\n.") + len(b"\nout\n.")).spent
    found: Found = {"out": (ended - began) / (OUT_SIZE >> 10)}
    if not run.counted:
        found["out_rate"] = OUT_SIZE * 1e3 / (ended - began)
    return found


def number(task: dict[str, Any]) -> Found:
    """Run a program that prints one number, and return it."""
    done = subprocess.run(task["argv"], capture_output=True, check=True)
    return {"spent": float(done.stdout)}


KINDS: Final = {"first": first, "work": work, "linux": linux, "typed": typed, "lines": lines,
                "lines_out": lines_out, "disk": disk, "requests": requests, "console": console,
                "console_out": console_out, "number": number}  # fmt: skip


def main() -> None:
    """Run the tasks from standard input."""
    tasks = json.load(sys.stdin)
    os.chdir("/")  # a measured Python searches here first for its imports
    found: dict[str, list[Found]] = {}
    for task in tasks:
        for _ in range(task["times"]):
            found.setdefault(task["name"], []).append(KINDS[task["kind"]](task))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
