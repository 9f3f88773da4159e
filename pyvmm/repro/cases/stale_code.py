"""A CPU executes old instructions after another CPU has replaced them.

Linux patches its own code, for example for static keys: KVM switches ``preempt_notifier_key`` when
the first VM is made and when the last one ends.  A CPU that still executes the old instruction
switches between vCPU threads without saving the registers of the first one.

Source: Arm DDI 0487, B2.7.4.2; QEMU commit deba78709ae8 (v8.1), "accel/tcg: Always lock pages
before translation".
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvmm.repro.model import (
    CANNOT_TELL,
    NOT_THERE,
    PROGRAMS,
    THERE,
    Case,
    Evidence,
    Finding,
    Option,
    Reproduction,
    Settings,
    Variants,
    number_in,
)
from pyvmm.repro.observe import cpus, kernel
from pyvmm.repro.programs import Executable, numbers

PROGRAM: Final = "code-patcher"
STARVED_S: Final = 120.0  # added to the requested time, for a busy machine
SHARED, ALONE = "shared", "alone"
ENOUGH_ROUNDS: Final = 100  # the minimum for a verdict
ADVICE: Final = "keep one VM open as long as any VM runs on this machine (docs/stale-code.md)"


def work(case: Case) -> Evidence:
    """Let one CPU execute code that another CPU replaces, and count stale executions."""
    found: Evidence = {"kernel": kernel(), "cpus": len(cpus())}
    if len(cpus()) < 2:
        return found
    runner, patcher = sorted(cpus())[-2:]
    shared = int(case.settings["page"] == SHARED)
    arguments = [runner, patcher, case.settings["seconds"] * 1000, case.seed, shared]
    return found | _answer(case.path("patcher"), [str(argument) for argument in arguments],
                           case.settings["seconds"] + STARVED_S)  # fmt: skip


def _answer(patcher: Path, arguments: list[str], timeout_s: float) -> Evidence:
    """Run code-patcher, and return its counts or the error."""
    with Executable(patcher) as file:
        try:
            done = subprocess.run(
                [PROGRAM, *arguments], capture_output=True, timeout=timeout_s, check=False,
                **file.options,
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
    """Return whether a CPU executed an old instruction long after its replacement."""
    if found["cpus"] < 2:
        return Finding("UNSUPPORTED", CANNOT_TELL, ("the test needs two CPUs, the host has one",))
    if "trouble" in found:
        return Finding("INCONCLUSIVE", CANNOT_TELL, (found["trouble"],))
    rounds, stale = found["rounds"], found["stale"]
    caught = f"{found['caught']} of {found['controls']} controls were caught"
    if not found["controls"] or found["caught"] < found["controls"]:
        return Finding("INCONCLUSIVE", CANNOT_TELL, (caught,))
    if stale:
        why = f"in {stale} of {rounds} rounds a CPU executed a replaced instruction"
        return Finding("REPRODUCED", THERE, (why, caught), advice=ADVICE)
    why = f"no CPU executed a replaced instruction in {rounds} rounds"
    if rounds < ENOUGH_ROUNDS:
        few = f"a verdict needs {ENOUGH_ROUNDS} rounds: use a larger `seconds`"
        return Finding("INCONCLUSIVE", CANNOT_TELL, (why, few))
    return Finding("NOT REPRODUCED", NOT_THERE, (why, caught))


def variants(settings: Settings) -> Variants:
    """Yield the settings that a matrix runs on each host."""
    for page in (SHARED, ALONE):
        yield f"page {page}", {**settings, "page": page}


def show(settings: Settings, found: Evidence) -> Iterator[str]:
    """Format the counts."""
    yield f"host kernel  {found['kernel']}"
    if "rounds" in found:
        yield f"rounds       {found['rounds']}"
        yield f"late         {found['late']} (the first call executed the old instruction)"
        yield f"stale        {found['stale']} (so did a call after 20 ms and 1000 calls)"
        yield f"controls     {found['caught']} of {found['controls']} caught"


REPRODUCTION = Reproduction(
    name="stale-code",
    title="A CPU executes old instructions after another CPU has replaced them.",
    options=(
        Option(name="seconds", metavar="S", default="10", parse=number_in("seconds", range(1, 601)),
               help="How long to replace instructions; the test ends early after 20 stale rounds."),
        Option(name="page", default=SHARED, choices=(SHARED, ALONE),
               help="Whether other code of the page runs as well, as in a kernel."),
    ),
    work=work,
    judge=judge,
    show=show,
    files={"patcher": PROGRAMS / PROGRAM},
    variants=variants,
)  # fmt: skip
