"""The witness: ``sve-watcher``, a process that holds patterns in SVE registers on one CPU."""

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

FAILED_S = 60.0  # for a program that said why to end


class WatcherEnded(VmmError):
    """The watcher, or its process that holds the registers, is there no more.

    ``signal`` is what killed it, 0 where it was none; ``starved`` says that it got no time.
    """

    def __init__(self, message: str, *, signal: int = 0, starved: bool = False) -> None:
        super().__init__(message)
        self.signal = signal
        self.starved = starved


class Tally(Record, kw_only=True):
    """What a number of holds came to; see programs/sve-watcher.h.  Lengths are in bytes."""

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
        """Both together; lengths read afterwards are the later ones."""
        mine, theirs = asdict(self), asdict(other)
        total = {name: mine[name] + theirs[name] for name in mine}
        total |= {"rdvl": other.rdvl, "prctl": other.prctl}
        total |= {name: min(mine[name], theirs[name]) for name in ("vl_min", "loops_min")}
        return Tally(**total | {"vl_max": max(self.vl_max, other.vl_max)})


class Watcher(Closing):
    """A running sve-watcher; a context manager that ends it."""

    def __init__(self, program: Path, cpu: int, seed: int) -> None:
        """Start it, pinned to that CPU.

        Raises: WatcherEnded, where it cannot work here, as without SVE.
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
        self.vl = ready["vl"]  # bytes: the longest
        self.lengths = frozenset(128 * (n + 1) for n in range(16) if ready["lengths"] >> n & 1)
        self.armed = False

    def close(self) -> None:
        """End it, and the process that holds the registers; idempotent."""
        self._process.kill()  # the other one dies of its parent's death
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a word that it never read
                    stream.close()

    def hold(self, microseconds: int, count: int, damage: str = "") -> Tally:
        """Have patterns held so many times, with the registers damaged in each where asked."""
        order = f"damage {damage}" if damage else "hold"
        told = numbers(self._ask(f"{order} {microseconds} {count}", "hold"))
        return Tally(**{name: told[name] for name in Tally.record_fields})

    def arm(self) -> None:
        """From now on, have the kernel itself load the holder's SVE state before each hold."""
        self._ask("arm", "armed")
        self.armed = True

    def _ask(self, line: str, expected: str) -> str:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is told below
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
        """What it means that there is no answer."""
        if kind == "starved":
            return WatcherEnded("the watcher got no time on its CPU", starved=True)
        if kind == "died":
            number = int(words[0])
            how = signal.Signals(number).name if number else f"exit code {words[1]}"
            return WatcherEnded(f"the watcher's holder died: {how}", signal=number)
        if kind == "failed":
            reason = os.strerror(int(words[1]))
            return WatcherEnded(f"the watcher cannot work here: {words[0]}: {reason}")
        code = self._process.wait(FAILED_S)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return WatcherEnded(f"the watcher died: {name}", signal=max(0, -code))
