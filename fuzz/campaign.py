"""A run of several targets, two processes at once, and the table of their results."""

from __future__ import annotations

import concurrent.futures
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fuzz.runs import BUILD, again, command, corpus
from pyvmm.base.records import Record

AT_ONCE: Final = 2
GRACE_S: Final = 180  # for the start, and an input that takes long
STATUS: Final = re.compile(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
SLOW: Final = "slow-unit-"  # libFuzzer keeps an input that takes ten seconds: no crash
EXECUTIONS: Final = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
ROW: Final = "{:<16} {:>12} {:>8} {:>9} {:>7} {:>8} {:>8}"
TITLES: Final = ("target", "executions", "edges", "features", "corpus", "seconds", "crashes")


class Outcome(Record, kw_only=True):
    """What one target's process did."""

    name: str
    executions: int
    edges: int
    features: int
    inputs: int
    seconds: float
    code: int
    crashes: tuple[Path, ...]

    @property
    def failed(self) -> bool:
        """Whether there was a crash, or the process failed in another way."""
        return bool(self.crashes) or self.code != 0

    @property
    def row(self) -> str:
        """The line of the table."""
        crashes = len(self.crashes) or ("failed" if self.code else 0)
        numbers = (self.executions, self.edges, self.features, self.inputs, round(self.seconds))
        return ROW.format(self.name, *numbers, crashes)


def run(names: Sequence[str], total_s: int) -> int:
    """Fuzz the targets for ``total_s`` seconds together; return the exit code."""
    each_s = max(1, total_s * min(AT_ONCE, len(names)) // len(names))
    print(f"{len(names)} targets, {AT_ONCE} at once, {each_s} s each")
    print(ROW.format(*TITLES), flush=True)
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(_fuzz, name, each_s) for name in names]
        for one in concurrent.futures.as_completed(running):
            outcomes.append(one.result())
            print(outcomes[-1].row, flush=True)
    failed = [outcome for outcome in outcomes if outcome.failed]
    for outcome in failed:
        for crash in outcome.crashes:
            print(f"{outcome.name} crashed; run it again: {shlex.join(again(outcome.name, crash))}")
        if not outcome.crashes:
            print(f"{outcome.name} failed with exit code {outcome.code}: see {_log(outcome.name)}")
    executions = sum(outcome.executions for outcome in outcomes)
    print(f"{executions} executions, {sum(len(o.crashes) for o in outcomes)} crashes")
    return 1 if failed else 0


def _log(name: str) -> Path:
    return BUILD / f"{name}.log"


def _fuzz(name: str, seconds: int) -> Outcome:
    """Run a target's process to its end."""
    crashes = BUILD / "crashes" / name
    crashes.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    words = command(
        name, f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={crashes}/",
        *corpus(name),
    )  # fmt: skip
    began = time.monotonic()
    with _log(name).open("wb") as log:
        try:
            code = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                timeout=seconds + GRACE_S,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = 124
    made = set(crashes.iterdir()) - before
    new = tuple(sorted(path for path in made if not path.name.startswith(SLOW)))
    return outcome_of(name, _log(name).read_text(errors="replace"), new, code,
                      time.monotonic() - began)  # fmt: skip


def outcome_of(
    name: str, log: str, crashes: tuple[Path, ...], code: int, seconds: float
) -> Outcome:
    """Return what a process's log says."""
    status = [tuple(map(int, found.groups())) for found in STATUS.finditer(log)]
    count, edges, features, inputs = status[-1] if status else (0, 0, 0, 0)
    total = EXECUTIONS.search(log)
    return Outcome(
        name=name, executions=int(total[1]) if total else count, edges=edges, features=features,
        inputs=inputs, seconds=seconds, code=code, crashes=crashes,
    )  # fmt: skip
