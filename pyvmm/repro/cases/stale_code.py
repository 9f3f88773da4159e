"""A machine whose CPU goes on with instructions that another CPU has replaced.

Linux replaces its own instructions while it runs, as where a static key is switched: KVM switches
``preempt_notifier_key`` with the first VM and with the last.  A CPU that keeps the old instruction
then changes from one vCPU's thread to another's without saving the first one's registers.

Source: Arm DDI 0487, B2.7.4.2; QEMU commit deba78709ae8 (v8.1), "accel/tcg: Always lock pages
before translation".
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from pyvmm.errors import UsageError
from pyvmm.repro.model import (
    CANNOT_TELL,
    NOT_THERE,
    THERE,
    Case,
    Evidence,
    Finding,
    Option,
    Reproduction,
    Settings,
    program,
)
from pyvmm.repro.observe import cpus, kernel
from pyvmm.repro.programs import Executable, numbers

PROGRAM: Final = "code-patcher"
LONGEST_S: Final = 600
STARVED_S: Final = 120.0  # beyond the time that was asked for
SHARED, ALONE = "shared", "alone"
ENOUGH_ROUNDS: Final = 100  # fewer show nothing
ADVICE: Final = "on such a machine, keep one VM open as long as any VM runs (docs/stale-code.md)"


def parse_seconds(text: str) -> int:
    """Read --seconds.  Raises: UsageError."""
    if not re.fullmatch(r"\d{1,3}", text) or not 1 <= int(text) <= LONGEST_S:
        raise UsageError(f"--seconds {text}: not from 1 to {LONGEST_S}")
    return int(text)


def work(case: Case) -> Evidence:
    """Have one CPU execute code that another one replaces, and count what was not noticed."""
    found: Evidence = {"kernel": kernel(), "cpus": len(cpus())}
    if len(cpus()) < 2:
        return found
    runner, patcher = sorted(cpus())[-2:]
    shared = int(case.settings["page"] == SHARED)
    arguments = [runner, patcher, case.settings["seconds"] * 1000, case.seed, shared]
    return found | _answer(case.path("patcher"), [str(argument) for argument in arguments],
                           case.settings["seconds"] + STARVED_S)  # fmt: skip


def _answer(patcher: Path, arguments: list[str], timeout_s: float) -> Evidence:
    """What code-patcher counted, or the trouble it had."""
    with Executable(patcher) as file:
        try:
            done = subprocess.run(
                [PROGRAM, *arguments], executable=f"/proc/self/fd/{file.fd}", pass_fds=[file.fd],
                capture_output=True, text=True, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"trouble": f"{PROGRAM} did not end in {timeout_s:.0f} s"}
    kind, _, rest = done.stdout.rstrip().partition(" ")
    if kind == "patched":
        return numbers(rest)
    if kind == "failed":
        what, number = rest.split()
        return {"trouble": f"{PROGRAM}: {what}: {os.strerror(int(number))}"}
    return {"trouble": f"{PROGRAM} ended with {done.returncode}"}


def judge(settings: Settings, found: Evidence) -> Finding:
    """The verdict: whether an old instruction was executed long after it had been replaced."""
    if found["cpus"] < 2:
        return Finding("UNSUPPORTED", CANNOT_TELL, ("the host has one CPU, and two are needed",))
    if "trouble" in found:
        return Finding("INCONCLUSIVE", CANNOT_TELL, (found["trouble"],))
    rounds, stale = found["rounds"], found["stale"]
    caught = f"{found['caught']} of {found['controls']} controls were caught"
    if not found["controls"] or found["caught"] < found["controls"]:
        return Finding("INCONCLUSIVE", CANNOT_TELL, (caught,))
    if stale:
        why = f"in {stale} of {rounds} rounds a CPU kept an instruction that had been replaced"
        return Finding("REPRODUCED", THERE, (why, caught), advice=ADVICE)
    why = f"in none of {rounds} rounds did a CPU keep an instruction that had been replaced"
    if rounds < ENOUGH_ROUNDS:
        few = f"{ENOUGH_ROUNDS} rounds are needed: --seconds gives them more time"
        return Finding("INCONCLUSIVE", CANNOT_TELL, (why, few))
    return Finding("NOT REPRODUCED", NOT_THERE, (why, caught))


def variants(settings: Settings) -> Iterable[tuple[str, Settings]]:
    """What each host of a matrix is tried with."""
    for page in (SHARED, ALONE):
        yield f"page {page}", {**settings, "page": page}


def show(settings: Settings, found: Evidence) -> Iterator[str]:
    """What was counted."""
    yield f"host kernel  {found['kernel']}"
    if "rounds" in found:
        yield f"rounds       {found['rounds']}"
        yield f"late         {found['late']} (the old instruction at the first look)"
        yield f"stale        {found['stale']} (and still 20 ms and 1000 calls later)"
        yield f"controls     {found['caught']} of {found['controls']} caught"


REPRODUCTION = Reproduction(
    name="stale-code",
    title="A CPU goes on with instructions that another CPU has replaced.",
    options=(
        Option(name="seconds", metavar="S", default="10", parse=parse_seconds,
               help="How long to replace instructions; it ends early after 20 stale ones."),
        Option(name="page", default=SHARED, choices=(SHARED, ALONE),
               help="Whether other code of the page is executed too, as in a kernel's."),
    ),
    work=work,
    judge=judge,
    show=show,
    files={"patcher": program(PROGRAM)},
    variants=variants,
)  # fmt: skip
