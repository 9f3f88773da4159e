"""The watcher: ``sve-watcher``, a program that holds patterns in SVE registers on one CPU."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path

from pyvmm.base.closing import Closing
from pyvmm.base.records import Record
from pyvmm.errors import VmmError
from pyvmm.repro.programs import Executable, numbers

FAILED_S = 60.0  # for a failed program to end


class WatcherEnded(VmmError):
    """The watcher, or its child process that holds the registers, has ended.

    ``signal`` is the signal that killed it, or 0.  ``starved`` means that it got no CPU time.
    """

    def __init__(self, message: str, *, signal: int = 0, starved: bool = False) -> None:
        super().__init__(message)
        self.signal = signal
        self.starved = starved


class Tally(Record, kw_only=True):
    """The counts of a number of holds; see programs/sve-watcher.h.  Lengths are in bytes."""

    holds: int
    bad: int
    truncated: int
    zeroed: int
    foreign: int
    low: int
    p: int
    ffr: int
    vl_min: int
    vl_max: int
    rdvl: int
    prctl: int
    loops: int
    loops_min: int
    interrupted: int
    moved: int
    damaged: int
    caught: int
    missed: int
    arm_failed: int

    def __add__(self, other: Tally) -> Tally:
        """Add the counts; ``rdvl`` and ``prctl`` are taken from ``other``, which is later."""
        mine, theirs = asdict(self), asdict(other)
        total = {name: mine[name] + theirs[name] for name in mine}
        total |= {"rdvl": other.rdvl, "prctl": other.prctl}
        total |= {name: min(mine[name], theirs[name]) for name in ("vl_min", "loops_min")}
        return Tally(**total | {"vl_max": max(self.vl_max, other.vl_max)})


class Watcher(Closing):
    """A running sve-watcher; a context manager that ends it."""

    def __init__(self, program: Path, cpu: int, seed: int) -> None:
        """Start it, pinned to that CPU.

        Raises: WatcherEnded, if it cannot run here, for example without SVE.
        """
        with Executable(program) as file:
            self._process = subprocess.Popen(
                ["sve-watcher", str(cpu), str(seed)],
                executable=f"/proc/self/fd/{file.fd}",
                pass_fds=[file.fd],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        try:
            ready = numbers(self._answer("ready"))
        except BaseException:
            self.close()
            raise
        self.vl = ready["vl"]  # the longest, in bytes
        self.lengths = frozenset(128 * (n + 1) for n in range(16) if ready["lengths"] >> n & 1)
        self.armed = False

    def close(self) -> None:
        """End it and its child process; idempotent."""
        self._process.kill()  # the child dies with its parent
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # it has unread input
                    stream.close()

    def hold(self, microseconds: int, count: int, damage: str = "") -> Tally:
        """Hold patterns ``count`` times, and damage the registers each time if asked."""
        order = f"damage {damage}" if damage else "hold"
        answer = numbers(self._ask(f"{order} {microseconds} {count}", "hold"))
        return Tally(**{name: answer[name] for name in Tally.record_fields})

    def arm(self) -> None:
        """Let the kernel load the holder's SVE state before each hold from now on."""
        self._ask("arm", "armed")
        self.armed = True

    def _ask(self, line: str, expected: str) -> str:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # _answer() reports the end
            self._process.stdin.write(f"{line}\n")
        return self._answer(expected)

    def _answer(self, expected: str) -> str:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().rstrip()
        kind, _, rest = said.partition(" ")
        if kind == expected:
            return rest
        raise self._end(kind, rest.split())

    def _end(self, kind: str, words: list[str]) -> WatcherEnded:
        """Return the reason why there is no answer."""
        if kind == "starved":
            return WatcherEnded("the watcher got no CPU time", starved=True)
        if kind == "died":
            number = int(words[0])
            how = signal.Signals(number).name if number else f"exit code {words[1]}"
            return WatcherEnded(f"the watcher's holder died: {how}", signal=number)
        if kind == "failed":
            reason = os.strerror(int(words[1]))
            return WatcherEnded(f"the watcher cannot run here: {words[0]}: {reason}")
        code = self._process.wait(FAILED_S)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return WatcherEnded(f"the watcher died: {name}", signal=max(0, -code))
