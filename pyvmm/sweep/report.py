"""Reports of a sweep: JSON for programs, JUnit for continuous integration, a log of each run."""

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
from pyvmm.sweep.drive import RunResult, RunVerdict
from pyvmm.sweep.plan import host_name
from pyvmm.sweep.work import command_line

SCHEMA = 1
SHOWN = 16 << 10  # characters of a guest's output in a report: the last

# JUnit's verdicts; the others are an "error".
_JUNIT = {
    RunVerdict.PASSED: "",
    RunVerdict.FAILED: "failure",
    RunVerdict.TIMEOUT: "failure",
    RunVerdict.STOPPED: "skipped",
}

# The exit code of a sweep whose bad runs all have this verdict.
_CODES = {RunVerdict.LACKING: EXIT_HOST, RunVerdict.REFUSED: EXIT_USAGE}

Hosts = Mapping[HostSettings, Probe]


def exit_code(results: Sequence[RunResult]) -> int:
    """Return the exit code of a sweep that was not interrupted."""
    verdicts = {result.verdict for result in results} - {RunVerdict.PASSED}
    if not verdicts:
        return EXIT_OK
    codes = {_CODES.get(verdict, EXIT_FAILED) for verdict in verdicts - {RunVerdict.STOPPED}}
    return codes.pop() if len(codes) == 1 else EXIT_FAILED


def summary(results: Sequence[RunResult]) -> str:
    """Count the runs of each verdict, in a line."""
    counts = Counter(result.verdict for result in results)
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in RunVerdict if counts[verdict])
    return f"{len(results)} run{'' if len(results) == 1 else 's'}: {words}"


def where(hosts: Hosts) -> dict[str, str]:
    """Return the machine and kernel behind each host setting, by its name."""
    return {
        host_name(settings): f"{probe.machine}, {probe.kernel}" for settings, probe in hosts.items()
    }


def document(
    results: Sequence[RunResult], hosts: Hosts, logs: Path | None = None
) -> dict[str, Any]:
    """Return the JSON document; ``logs`` is the directory of the runs' logs."""
    counts = Counter(result.verdict for result in results)
    return {
        "schema": SCHEMA,
        "hosts": [
            {**asdict(settings), "name": host_name(settings), "probe": probe.document()}
            for settings, probe in hosts.items()
        ],
        "counts": {str(verdict): counts[verdict] for verdict in RunVerdict},
        "runs": [
            {**_entry(result), "log": None if logs is None else str(logs / result.run.log_name)}
            for result in results
        ],
    }


def _entry(result: RunResult) -> dict[str, Any]:
    run, output = result.run, result.output
    return {
        "name": run.name,
        "host": host_name(run.where),
        "set": sorted(run.vls),
        "cpus": run.cpus,
        "command": command_line(run),
        "verdict": str(result.verdict),
        "problem": result.problem or None,
        "exit": None if output is None else output.code,
        "seconds": None if output is None else round(output.seconds, 3),
        "machine": None if output is None else output.machine,
        "output": None if output is None else _text(output.stdout),
    }


def junit_document(results: Sequence[RunResult], hosts: Hosts, image: str) -> bytes:
    """Return the JUnit document: the sweep is a suite, and each run a case."""
    properties = {f"host {name}": machine for name, machine in where(hosts).items()}
    cases = [_case(result, image) for result in results]
    return junit.document(f"pyvmm sweep {image}", cases, properties)


def _case(result: RunResult, image: str) -> junit.Testcase:
    output = result.output
    return junit.Testcase(
        classname=f"pyvmm.sweep.{Path(image).name}",
        name=result.run.name,
        seconds=0.0 if output is None else output.seconds,
        output="" if output is None else _text(output.stdout) + _text(output.stderr),
        verdict=_JUNIT.get(result.verdict, "error"),
        reason=f"{result.verdict}: {result.problem}",
    )


def write_log(directory: Path, result: RunResult) -> None:
    """Write a run's command, output and verdict to its log.

    Raises: UsageError, if it cannot be written.
    """
    output = result.output
    parts = [f"$ {command_line(result.run)}\n".encode()]
    end = result.problem
    if output is not None:
        if output.left_out:
            parts.append(f"[{output.left_out} bytes before this are left out]\n".encode())
        parts += [output.stdout, output.stderr]
        end = f"exit {output.code} after {output.seconds:.1f} s on {output.machine}"
    parts.append(f"[{result.verdict}: {end}]\n".encode())
    write_whole(directory / result.run.log_name, b"".join(parts))


def log_directory(path: Path) -> Path:
    """Make the directory for logs.

    Raises: UsageError.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"`logs`={path}: cannot be made: {error.strerror}") from error
    return path


def _text(data: bytes) -> str:
    return data.decode(errors="replace")[-SHOWN:]
