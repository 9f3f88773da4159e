"""What a sweep found: JSON for programs, JUnit for continuous integration, a log for each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyvmm.base.files import write_whole
from pyvmm.errors import EXIT_FAILED, EXIT_HOST, EXIT_OK, EXIT_USAGE, UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.report import junit
from pyvmm.svecheck.probe import Probe
from pyvmm.sweep.drive import Result, Verdict
from pyvmm.sweep.plan import host_name
from pyvmm.sweep.work import command_line

SCHEMA = 1
SHOWN = 16 << 10  # characters of a guest's output in a report: its last

# What a verdict is in JUnit's words, where it is not a pass.
_JUNIT = {
    Verdict.FAILED: "failure",
    Verdict.TIMEOUT: "failure",
    Verdict.LACKING: "error",
    Verdict.REFUSED: "error",
    Verdict.BROKEN: "error",
    Verdict.STOPPED: "skipped",
}

# What a sweep ends with, all of whose bad runs are of one kind.
_CODES = {Verdict.LACKING: EXIT_HOST, Verdict.REFUSED: EXIT_USAGE}

Hosts = Mapping[HostSettings, Probe]


def exit_code(results: Sequence[Result]) -> int:
    """What the sweep as a whole ends with, where nobody interrupted it."""
    verdicts = {result.verdict for result in results} - {Verdict.PASSED}
    if not verdicts:
        return EXIT_OK
    codes = {_CODES.get(verdict, EXIT_FAILED) for verdict in verdicts - {Verdict.STOPPED}}
    return codes.pop() if len(codes) == 1 else EXIT_FAILED


def summary(results: Sequence[Result]) -> str:
    """How many of each verdict there are."""
    counts = Counter(result.verdict for result in results)
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    return f"{len(results)} run{'' if len(results) == 1 else 's'}: {words}"


def where(hosts: Hosts) -> dict[str, str]:
    """On which machines the results were obtained, by the names of their settings."""
    return {
        host_name(settings): f"{probe.machine}, {probe.kernel}" for settings, probe in hosts.items()
    }


def document(results: Sequence[Result], hosts: Hosts, logs: Path | None = None) -> dict[str, Any]:
    """The JSON document; ``logs`` is the directory that holds them, if there is one."""
    counts = Counter(result.verdict for result in results)
    return {
        "schema": SCHEMA,
        "hosts": [
            {**asdict(settings), "name": host_name(settings), "probe": probe.document()}
            for settings, probe in hosts.items()
        ],
        "counts": {str(verdict): counts[verdict] for verdict in Verdict},
        "runs": [
            {**_entry(result), "log": None if logs is None else str(logs / result.run.log_name)}
            for result in results
        ],
    }


def _entry(result: Result) -> dict[str, Any]:
    run, outcome = result.run, result.outcome
    return {
        "name": run.name,
        "host": host_name(run.where),
        "set": sorted(run.vls),
        "cpus": run.cpus,
        "command": command_line(run),
        "verdict": str(result.verdict),
        "problem": result.problem or None,
        "exit": None if outcome is None else outcome.code,
        "seconds": None if outcome is None else round(outcome.seconds, 3),
        "machine": None if outcome is None else outcome.machine,
        "output": None if outcome is None else _text(outcome.stdout),
    }


def junit_document(results: Sequence[Result], hosts: Hosts, image: str) -> bytes:
    """The JUnit document: the sweep is a suite, and each run a case."""
    properties = {f"host {name}": machine for name, machine in where(hosts).items()}
    cases = [_case(result, image) for result in results]
    return junit.document(f"pyvmm sweep {image}", cases, properties)


def _case(result: Result, image: str) -> junit.Testcase:
    outcome = result.outcome
    reason = {}
    if result.verdict is not Verdict.PASSED:
        reason[_JUNIT[result.verdict]] = f"{result.verdict}: {result.problem}"
    return junit.Testcase(
        classname=f"pyvmm.sweep.{Path(image).name}",
        name=result.run.name,
        seconds=0.0 if outcome is None else outcome.seconds,
        output="" if outcome is None else _text(outcome.stdout) + _text(outcome.stderr),
        **reason,
    )


def write_log(directory: Path, result: Result) -> None:
    """Write a run's command, what it printed, and how it ended; there whole, or not at all.

    Raises: UsageError, where it cannot be written.
    """
    outcome = result.outcome
    parts = [f"$ {command_line(result.run)}\n".encode()]
    if outcome is not None:
        if outcome.left_out:
            parts.append(f"[{outcome.left_out} bytes before this are left out]\n".encode())
        parts += [outcome.stdout, outcome.stderr]
        took = f"exit {outcome.code} after {outcome.seconds:.1f} s on {outcome.machine}"
        parts.append(f"[{result.verdict}: {took}]\n".encode())
    else:
        parts.append(f"[{result.verdict}: {result.problem}]\n".encode())
    write_whole(directory / result.run.log_name, b"".join(parts))


def log_directory(path: Path) -> Path:
    """The directory for logs, made where it is not there.

    Raises: UsageError.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"`logs`={path}: cannot be made: {error.strerror}") from error
    return path


def _text(data: bytes) -> str:
    return data.decode(errors="replace")[-SHOWN:]
