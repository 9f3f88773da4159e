"""``python -m scripts.native [--fresh] [STAGE...]``: run stages, print a table of steps."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from pyvmm.errors import HostError, VmmError
from pyvmm.host.progress import Progress
from scripts.native import around, image
from scripts.native.machine import Agent, Boot, Machine
from scripts.native.steps import PREPARE, STAGES, Step

STATE: Final = around.ROOT / "build/native"
LAST_LINES: Final = 30


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a step; ``wrong`` is empty if it is as expected."""

    step: Step
    seconds: float
    wrong: str
    note: str


def judge(step: Step, code: int, said: str) -> str:
    """Return what is wrong with a step's exit code and output, or an empty string."""
    if code != step.code:
        return f"exit code {code}, not {step.code}"
    for pattern in step.says:
        if not re.search(pattern, said, re.MULTILINE):
            return f"does not say {pattern!r}"
    for pattern in step.silent:
        if re.search(pattern, said, re.MULTILINE):
            return f"says {pattern!r}"
    return ""


def main() -> int:
    """Run the stages; return 1 if a step is not as expected."""
    parser = argparse.ArgumentParser(prog="make test-native", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--fresh", action="store_true", help="Start with a new copy of the disk.")
    asked = parser.parse_args()
    if unknown := set(asked.stages) - STAGES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: the stages are {', '.join(STAGES)}")
    steps = [step for name in asked.stages or STAGES for step in STAGES[name]]
    progress = Progress()
    parts = image.parts(progress)
    STATE.mkdir(parents=True, exist_ok=True)
    disk = STATE / "disk"
    if asked.fresh or not asked.stages or not disk.exists():
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", parts.disk, disk], check=True)
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as directory:
        share = Path(directory)
        share.chmod(0o755)  # alice and bob read it too
        around.write_share(share)
        boot = Boot(parts.image, parts.initrd, disk, share=share)
        results = _run(boot, steps, progress)
    show(results, len(steps) + len(PREPARE) + 1)
    done = len(results) == len(steps) + len(PREPARE) + 1
    return 0 if done and not any(result.wrong for result in results) else 1


def _run(boot: Boot, steps: list[Step], progress: Progress) -> list[Result]:
    """Boot the machine and run the steps; a step of PREPARE that fails ends it."""
    results: list[Result] = []
    with (
        (STATE / "log").open("w", encoding="utf-8") as log,
        Machine.started(boot, progress) as machine,
    ):
        started = time.monotonic()
        progress.say(f"booting the arm64 machine; the output of every step is in {log.name}")
        agent = machine.connect()
        booting = Step("boot, to multi-user", "", "")
        results.append(Result(booting, time.monotonic() - started, "", ""))
        try:
            for step in (*PREPARE, *steps):
                progress.say(f"{step.user}: {step.name} ...")
                results.append(result := _do(agent, step, log))
                progress.say(f"  {result.wrong or 'ok'}, {result.seconds:.1f} s {result.note}")
                if result.wrong and step in PREPARE:
                    break
            machine.switch_off(agent)
        except (TimeoutError, HostError) as error:
            progress.say(f"given up: {error}")
        (STATE / "console").write_text(machine.console)
    return results


def _do(agent: Agent, step: Step, log: TextIO) -> Result:
    """Run one step with its output in the log; show the end on stderr if it is wrong."""
    log.write(f"==== {step.user}: {step.name}\n{step.command}\n----\n")

    def show(text: str) -> None:
        log.write(text)
        log.flush()

    started = time.monotonic()
    code, said = agent.run(step.user, step.command, step.timeout_s, show)
    wrong = judge(step, code, said)
    if wrong:
        print("".join(f"  | {line}\n" for line in said.splitlines()[-LAST_LINES:]), file=sys.stderr)
    note = ", ".join(re.findall(step.note, said)) if step.note else ""
    return Result(step, time.monotonic() - started, wrong, note)


def show(results: list[Result], wanted: int) -> None:
    """Print the table."""
    width = max(len(result.step.name) for result in results) if results else 0
    for result in results:
        verdict = f"WRONG: {result.wrong}" if result.wrong else "ok"
        row = f"{result.step.user:6} {result.step.name:{width}} {result.seconds:8.1f} s  {verdict}"
        print(f"{row}  {result.note}".rstrip())
    failed = sum(bool(result.wrong) for result in results)
    print(
        f"{len(results) - failed} steps are right, {failed} wrong, {wanted - len(results)} not run"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except VmmError as error:
        sys.exit(f"pyvmm: {error}\n  hint: {error.hint}")
