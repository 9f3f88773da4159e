"""``pyvmm sve check``: check KVM's user space API for SVE against its documentation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from pyvmm.arm64 import vl
from pyvmm.base.computer import kind_of_machine
from pyvmm.base.files import write_whole
from pyvmm.base.output import printable
from pyvmm.cli import echo
from pyvmm.commands import _output
from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._options import file_option, json_option
from pyvmm.errors import UsageError
from pyvmm.host.settings import HostSettings
from pyvmm.host.share import Needs
from pyvmm.kvm.system import System
from pyvmm.machine.facts import processor
from pyvmm.svecheck import report, runner
from pyvmm.svecheck.bench import SveHost
from pyvmm.svecheck.case import CaseResult, Verdict

COLOURS = {Verdict.OK: "green", Verdict.DIFFERS: "red", Verdict.KNOWN: "cyan",
           Verdict.SKIPPED: "yellow"}  # fmt: skip


@click.command()
@click.option("-k", "pattern", metavar="PATTERN", help="Run only cases whose names match.")
@click.option("-v", "--verbose", is_flag=True, help="Show each case's actions and documentation.")
@json_option
@file_option("--junit", "Also write a JUnit report to FILE.")
@host_options
def check(
    where: HostSettings, pattern: str | None, verbose: bool, as_json: bool, junit: Path | None
) -> int:
    """Check this kernel's KVM against its documentation.

    Each case uses SVE in VMs of its own, and compares the kernel's behaviour with the
    documentation: ok, differs, known (some kernels differ on purpose), or skipped (the host lacks
    the lengths). PATTERN may contain * and ?. Exit codes: 1 something differs; 3 no SVE or no KVM.
    """
    cases = runner.chosen(pattern)
    if junit and not os.access(junit.parent, os.W_OK):
        raise UsageError(
            f"--junit {junit}: {junit.parent} is not a directory that you can write to"
        )
    run_here_or_forward(where, Needs(creates=(junit,) if junit else ()))
    with System.open() as system:
        sve_host = runner.probe(system)
        facts = obtained(sve_host)
        if not as_json:
            for name, value in facts.items():
                echo(f"{name:8}  {value}")
        results = []
        for result in runner.run(system, sve_host, cases):
            results.append(result)
            if not as_json:
                show(result, verbose)
    _output.show(as_json, report.document(results, facts), [report.summary(results)])
    if junit:
        write_whole(junit, report.junit_document(results, facts))
    return report.exit_code(results)


def obtained(sve_host: SveHost) -> dict[str, str]:
    """Return the machine, kernel and lengths of a result."""
    return {
        "host": kind_of_machine() or "hardware",
        "cpu": processor(),
        "kernel": " ".join((os.uname().sysname, os.uname().release, os.uname().version)),
        "lengths": vl.show(sve_host.vls),
    }


def show(result: CaseResult, verbose: bool) -> None:
    """Print a case as it ends."""
    first, *more = report.lines(result, verbose)
    click.echo(paint(printable(first), result.verdict))
    for line in more:
        echo(line)
    sys.stdout.flush()


def paint(line: str, verdict: Verdict) -> str:
    """Colour the verdict on a terminal, unless NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return line
    return click.style(line[: len(verdict)], fg=COLOURS[verdict]) + line[len(verdict) :]
