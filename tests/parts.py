"""`make test`: every part of it, two at a time, and one summary at the end.

`python -m tests.parts` runs all parts, also after one has failed. `python -m tests.parts units`
runs one, as `make test-units` does, with its output on the terminal.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Final, NoReturn

from pyvmm.base.output import discard_stderr, discard_stdout
from tests.reporting import Outcome
from tests.runtime import end_hosts_of
from tests.summary import PartResult, Result, ended, read_results, summary

ROOT: Final = Path(__file__).resolve().parent.parent
LOGS: Final = Path("build/test-logs")
BIN: Final = Path(os.path.relpath(Path(sys.executable).parent, ROOT))
PYTHON: Final = str(BIN / "python")
AT_ONCE: Final = 2  # each keeps a CPU or an emulated host busy
GRACE_S: Final = 60.0  # for an interrupted part, which stops its emulated host
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Part:
    """Commands that run one after another: one pytest with many tests, or checks by name."""

    name: str
    pytest: tuple[str, ...] = ()  # the command that takes tests' names
    chosen: tuple[str, ...] = ()  # the arguments that choose all tests of the part
    checks: tuple[tuple[str, ...], ...] = ()

    @property
    def commands(self) -> list[list[str]]:
        """The commands as `make test-NAME` runs them."""
        return [[*self.pytest, *self.chosen]] if self.pytest else [[*c] for c in self.checks]


PYTEST: Final = (PYTHON, "-m", "pytest")
USERS: Final = ("-m", "e2e and not kvm and not matrix", "--durations=10")

# The longest first.
PARTS: Final = (
    # The pyvmm command as a user types it; then the guests: bare-metal ones and Linux.
    Part("e2e", PYTEST, (*USERS, "tests/e2e")),
    Part("guests", PYTEST, (*USERS, "tests/guests")),
    # Tests that need /dev/kvm: here on arm64, else inside the emulated host.
    Part("kvm", (PYTHON, "-m", "tests.in_host")),
    # Tests that run anywhere.
    Part("units", PYTEST, ("-m", "not kvm and not e2e and not matrix", "--ignore=tests/e2e")),
    Part("lint", checks=(
        (str(BIN / "ruff"), "format", "--check", "."), (str(BIN / "ruff"), "check", "."),
        (str(BIN / "mypy"),),
    )),
)  # fmt: skip


class Interrupted(BaseException):
    """A signal that ends the run."""


class Runner:
    """Runs parts, each with its output in a file, until stop() is called."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()

    def run(self, part: Part) -> PartResult:
        """Run a part to its end; a log that cannot be written is a failure of the part."""
        began = time.monotonic()
        log = self._logs / f"{part.name}.log"
        try:
            with log.open("wb") as output:
                results = self._test(part, output) if part.pytest else self._check(part, output)
        except OSError as error:
            results = [Result(part.name, Outcome.FAILED, _reason(error))]
        again = {
            r.test: [*part.pytest, r.test] if "::" in r.test else _command_of(part, r.test)
            for r in results
        }
        return PartResult(part.name, results, time.monotonic() - began, again, log)

    def stop(self, number: int) -> None:
        """Send a signal to all running commands and their children; start no more."""
        with self._lock:
            self._stopped.set()
            for process in self._running:
                _send(process, number)

    def _test(self, part: Part, output: BinaryIO) -> list[Result]:
        results = self._logs / f"{part.name}.jsonl"
        results.unlink(missing_ok=True)
        report = ["-p", "tests.reporting", "--results", str(results)]
        code = self._call([*part.pytest, *report, *part.chosen], output)
        return read_results(results, code)

    def _check(self, part: Part, output: BinaryIO) -> list[Result]:
        results = []
        for command in part.commands:
            code = self._call(command, output)
            outcome = Outcome.FAILED if code else Outcome.PASSED
            results.append(Result(_name(command), outcome, ended(code) if code else ""))
        return results

    def _call(self, command: Sequence[str], output: BinaryIO) -> int:
        """Run a command in a process group of its own, and return its exit code."""
        with self._lock:
            if self._stopped.is_set():
                return -signal.SIGINT
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                process_group=0,
            )  # fmt: skip
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
                stopped = self._stopped.is_set()
                if stopped:  # its children may ignore an interruption
                    _send(process, signal.SIGKILL)
            if stopped:  # a host has a process group of its own, and outlives a killed command
                end_hosts_of(process.pid)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the process group that a command was started in."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run_all(parts: Sequence[Part], logs: Path, say: Callable[[str], None]) -> list[PartResult]:
    """Run the parts side by side, in their order, and show each one's result at its end.

    Raises:
        Interrupted: a signal came; no command that was started still runs.
    """
    runner = Runner(logs)
    done: list[PartResult] = []
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(runner.run, part) for part in parts]
        try:
            for ended_part in concurrent.futures.as_completed(running):
                done.append(ended_part.result())
                _show(done[-1], say)
        except BaseException:
            _end(runner, running)
            raise
    names = [part.name for part in parts]
    return sorted(done, key=lambda part: names.index(part.name))


def _end(runner: Runner, running: Sequence[concurrent.futures.Future[PartResult]]) -> None:
    """Interrupt running commands; kill them after GRACE_S, or at a second signal."""
    runner.stop(signal.SIGINT)
    try:
        concurrent.futures.wait(running, GRACE_S)
    finally:
        runner.stop(signal.SIGKILL)


def _show(part: PartResult, say: Callable[[str], None]) -> None:
    """Show the counts of a part, and the whole output of a failed one."""
    if part.count(Outcome.FAILED):
        try:
            output = part.log.read_text(errors="replace").rstrip()
        except OSError as error:
            output = _reason(error)
        say(f"{part.name} failed; its output:\n{output}")
    say(f"{part.name}: {part.line} in {part.seconds:.0f} s")


def _command_of(part: Part, test: str) -> list[str]:
    """Return the command that runs a file, a check, or the whole part again."""
    if test.endswith(".py"):
        return [*part.pytest, test]
    whole = ["make", f"test-{part.name}" if part.pytest else part.name]
    return next((c for c in part.commands if _name(c) == test), whole)


def _name(command: Sequence[str]) -> str:
    """Return the name of a check."""
    return " ".join([Path(command[0]).name, *(word for word in command[1:2] if word.isalpha())])


def _reason(error: OSError) -> str:
    """Return the file that an error is about, and the kernel's reason."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


class Lines:
    """The lines for the user: on stdout, or on stderr once stdout cannot be written."""

    def __init__(self) -> None:
        self.lost: OSError | None = None  # the reason why stdout does not have them all

    def say(self, text: str) -> None:
        """Write lines; an error does not stop the tests."""
        if self.lost is None:
            try:
                print(text, flush=True)
            except OSError as error:
                self.lost = error
                discard_stdout()
                text = f"pyvmm: cannot write to stdout: {error.strerror}\n{text}"
        if self.lost is not None:
            try:
                print(text, file=sys.stderr, flush=True)
            except OSError:
                discard_stderr()


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def run_everything(parts: Sequence[Part] = PARTS, logs: Path = LOGS) -> int:
    """Run all parts, print the summary, and return the exit code."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"pyvmm: cannot make {logs}: {error.strerror}", file=sys.stderr)
        return 1
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    lines, began = Lines(), time.monotonic()
    names = ", ".join(part.name for part in parts)
    lines.say(f"testing, two parts at a time: {names}; output goes to {logs}/ ...")
    try:
        results = run_all(parts, logs, lines.say)
    except Interrupted as interrupt:
        number = signal.Signals(interrupt.args[0])
        print(f"pyvmm: the tests were interrupted by {number.name}", file=sys.stderr)
        return 128 + number
    lines.say("\n".join(["", *summary(results, time.monotonic() - began)]))
    return 1 if lines.lost or any(part.count(Outcome.FAILED) for part in results) else 0


def run_one(name: str, arguments: Sequence[str]) -> int:
    """Run one part with its output on the terminal, and return the exit code."""
    part = next((part for part in PARTS if part.name == name), None)
    if part is None:
        print(f"pyvmm: no part {name}; parts: {', '.join(p.name for p in PARTS)}", file=sys.stderr)
        return 2
    commands = [[*command, *arguments] for command in part.commands]
    if len(commands) == 1:
        os.execv(commands[0][0], commands[0])  # Ctrl-C reaches pytest alone
    return max(abs(subprocess.run(command).returncode) for command in commands)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(run_one(sys.argv[1], sys.argv[2:]) if sys.argv[1:] else run_everything())
