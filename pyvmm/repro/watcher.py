"""The watcher: ``sve-watcher``, a program that holds patterns in SVE registers on one CPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from pyvmm.base.closing import Closing
from pyvmm.repro.programs import ChildEnded, Executable, how_it_ended, numbers

FAILED_S = 60.0  # for a failed program to end

# The counts of a number of holds, by the names in programs/sve-watcher.h.  Lengths are in bytes.
Tally = dict[str, int]


def added(first: Tally, later: Tally) -> Tally:
    """Return the sums of the counts; ``rdvl`` and ``prctl`` are those of the later holds."""
    total = {name: first[name] + later[name] for name in first}
    total |= {name: min(first[name], later[name]) for name in ("vl_min", "loops_min")}
    total |= {name: later[name] for name in ("rdvl", "prctl")}
    return total | {"vl_max": max(first["vl_max"], later["vl_max"])}


class Watcher(Closing):
    """A running sve-watcher; a context manager that ends it."""

    def __init__(self, program: Path, cpu: int, seed: int) -> None:
        """Start it, pinned to that CPU.

        Raises: ChildEnded, if it cannot run here, for example without SVE.
        """
        with Executable(program) as file:
            self._process: subprocess.Popen[str] = subprocess.Popen(
                ["sve-watcher", str(cpu), str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=1,
                **file.options,
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
        return numbers(self._ask(f"{order} {microseconds} {count}", "hold"))

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

    def _end(self, kind: str, words: list[str]) -> ChildEnded:
        """Return the reason why there is no answer."""
        if kind == "starved":
            return ChildEnded("the watcher got no CPU time")
        if kind == "failed":
            reason = os.strerror(int(words[1]))
            return ChildEnded(f"the watcher cannot run here: {words[0]}: {reason}")
        if kind == "died":
            child, number, code = "watcher's holder", int(words[0]), int(words[1])
        else:
            child, code = "watcher", self._process.wait(FAILED_S)
            number = max(0, -code)
        return ChildEnded(f"the {child} died: {how_it_ended(number, code)}", number)
