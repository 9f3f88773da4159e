"""``pyvmm sweep``: the same guest at every set of vector lengths, on every host setting."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import click

from pyvmm.arm64.vl import VlSet
from pyvmm.base.files import write_whole
from pyvmm.base.signals import handling
from pyvmm.commands._hostopts import CHOICE
from pyvmm.commands.run import complete_image, find_image, run
from pyvmm.commands.sweep._line import command, query
from pyvmm.commands.sweep._table import SweepTable
from pyvmm.errors import EXIT_SIGNAL, UsageError
from pyvmm.host import is_local, say_why_emulated
from pyvmm.host.progress import Progress
from pyvmm.host.settings import (
    DEFAULT_CPU,
    DEFAULT_KERNEL,
    DEFAULT_QEMU,
    KINDS,
    HostSettings,
)
from pyvmm.sweep import report
from pyvmm.sweep.crew import Crew, dask, local
from pyvmm.sweep.drive import Result, Watcher, ask_hosts, drive
from pyvmm.sweep.plan import Guest, Run, alternatives, host_name, parse_cpus, parse_sets, plan

# Options of `pyvmm run` that are the sweep's own, and what others begin with that are too.
OWN = ("--cpus", "--timeout", "--initrd", "--kernel", "--no-sve")
OWN_BEGIN = ("--sve", "--host")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a sweep is done, and where its results go."""

    jobs: int | None
    scheduler: str | None
    logs: Path | None
    junit: Path | None
    as_json: bool
    fail_fast: bool


class Interruption:
    """Signals that end the sweep in an orderly way: the event is set, the number kept."""

    def __init__(self) -> None:
        self.event = Event()
        self.number = 0

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """The time in which signals do no more than that."""
        with handling(ENDING, self._note):
            yield

    def _note(self, number: int, frame: object) -> None:
        self.number = number
        self.event.set()


@click.command(
    epilog="--sve-vls-each, --cpus, --host-kernel and --host-cpu may be repeated, or hold several "
    "values with a semicolon between them; every combination is run. Exit codes: 0 every run "
    "passed (its guest ended with 0); 1 some did not; 2 usage; 3 a host lacks something; 128+n "
    "signal n, with what was finished reported."
)
@click.argument("image", shell_complete=complete_image)
@click.argument("more", nargs=-1, metavar="[-- RUN OPTIONS]")
@click.option(
    "--sve-vls-each", "sets", multiple=True, metavar="all|SET;...",
    help="Sets of vector lengths in bits, as '128;128,256'; all: every set the host can give; "
    "none: without SVE.",
)  # fmt: skip
@click.option("-c", "--cpus", multiple=True, metavar="N,...", help="vCPUs.")
@click.option("-p", "--params", default="", metavar="TEXT", help="Kernel command line.")
@click.option("-i", "--initrd", metavar="FILE", help="Initial RAM disk.")
@click.option("--timeout", type=float, metavar="SECONDS", help="End a guest after that time.")
@click.option(
    "--host",
    type=click.Choice(KINDS),
    default="auto",
    envvar="PYVMM_HOST",
    help="Where to run, as for pyvmm run.",
)
@click.option(
    "--host-kernel",
    "kernels",
    multiple=True,
    envvar="PYVMM_HOST_KERNEL",
    metavar=CHOICE,
    help="Emulated hosts' kernels, as for pyvmm run.",
)
@click.option(
    "--host-qemu",
    default=DEFAULT_QEMU,
    envvar="PYVMM_HOST_QEMU",
    metavar=CHOICE,
    help="The QEMU that emulates them.",
)
@click.option(
    "--host-cpu",
    "host_cpus",
    multiple=True,
    envvar="PYVMM_HOST_CPU",
    metavar="CPU",
    help="The CPUs it emulates.",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="CPUs",
    help="How many at a time, on this machine.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Hand the runs to that Dask cluster.")
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write a log of each run there.",
)
@click.option(
    "--junit",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a JUnit report there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--fail-fast", is_flag=True, help="End the sweep at the first run that fails.")
def sweep(image: str, more: tuple[str, ...], **options: Any) -> int:
    """Run a guest at every set of SVE vector lengths.

    And with every number of vCPUs, on every host setting that is asked for; several runs at a
    time, each as `pyvmm run` does it. A table shows them; it is live on a terminal. IMAGE is what
    `pyvmm run` takes. What comes after -- are more options of `pyvmm run`, for each run.
    """
    _refuse_own(more)
    params = ("--params", options["params"]) if options["params"] else ()
    guest = Guest(
        image=image,
        initrd=options["initrd"],
        options=(*params, *more),
        timeout_s=_checked(options["timeout"]),
    )
    if options["jobs"] is not None and options["scheduler"] is not None:
        raise UsageError(
            "--jobs is for this machine; a cluster has as many jobs as its workers have threads",
            hint="dask worker ADDRESS --nthreads N",
        )
    wishes = Wishes(**{wish.name: options[wish.name] for wish in fields(Wishes)})
    return Sweep(guest, wishes).run(
        parse_sets(options["sets"]), parse_cpus(options["cpus"]), _hosts(options)
    )


def _refuse_own(more: Sequence[str]) -> None:
    """Make sure that no run is another one than the sweep reports it to be.

    The options are read as `pyvmm run` does: -c2 and -vc 2 are --cpus as well.
    """
    values, _, given = run.make_parser(click.Context(run)).parse_args(list(more))
    if isinstance(values["image"], str):  # not the mark of what was not given
        raise UsageError(f"{values['image']} after --: a sweep has one image, and it comes before")
    for option in given:
        name = option.opts[-1]
        if name in OWN or name.startswith(OWN_BEGIN):
            raise UsageError(
                f"{name} after --: that is the sweep's own", hint="`pyvmm sweep --help` shows it"
            )


def _checked(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise UsageError(f"--timeout {timeout_s:g}: needs a time above 0 s")
    return timeout_s


def _hosts(options: dict[str, Any]) -> list[HostSettings]:
    """Every combination of kernels and CPUs; this machine is called so where it is meant."""
    kernels = alternatives(options["kernels"], "--host-kernel", ",;") or [DEFAULT_KERNEL]
    cpus = alternatives(options["host_cpus"], "--host-cpu") or [DEFAULT_CPU]
    hosts = [
        HostSettings(kind=options["host"], qemu=options["host_qemu"], kernel=kernel, cpu=cpu)
        for kernel, cpu in product(kernels, cpus)
    ]
    if options["scheduler"] is not None:  # each worker finds out for itself
        return hosts
    chosen = [replace(host, kind="local") if is_local(host) else host for host in hosts]
    for host in chosen:
        say_why_emulated(host, Progress().say)
    return chosen


class Sweep:
    """One sweep, from asking the hosts to its exit code."""

    def __init__(self, guest: Guest, wishes: Wishes) -> None:
        self._guest = guest
        self._wishes = wishes
        self._logs = None if wishes.logs is None else report.log_directory(wishes.logs)
        self._interruption = Interruption()

    def run(
        self,
        wanted: Sequence[VlSet | None],
        cpus: Sequence[int | None],
        settings: Sequence[HostSettings],
    ) -> int:
        """Do it, and report; the exit code."""
        stop = self._interruption.event
        with self._interruption.caught(), self._crew() as crew:
            if sys.stderr.isatty():  # making an emulated host takes its time
                names = "; ".join(map(host_name, settings))
                click.echo(f"pyvmm: asking for vector lengths: {names} ...", err=True)
            try:
                hosts = ask_hosts([query(where) for where in settings], crew, stop)
            except KeyboardInterrupt:
                return EXIT_SIGNAL + self._interruption.number
            lengths = {where: probe.vls for where, probe in hosts.items()}
            runs = plan(self._guest, wanted, cpus, lengths, command)
            results = self._drive(runs, crew)
            self._report(results, hosts)
        if stop.is_set():
            return EXIT_SIGNAL + self._interruption.number
        return report.exit_code(results)

    def _crew(self) -> AbstractContextManager[Crew]:
        """Who does the runs; for a cluster, the guest's files go along."""
        wishes = self._wishes
        if wishes.scheduler is None:
            return local(wishes.jobs or len(os.sched_getaffinity(0)))
        self._guest = self._guest.packed(find_image(self._guest.image))
        return dask(wishes.scheduler)

    def _drive(self, runs: Sequence[Run], crew: Crew) -> list[Result]:
        # JSON has standard output for itself.
        table = SweepTable(runs, sys.stderr if self._wishes.as_json else sys.stdout)

        def finished(result: Result) -> None:
            if self._logs is not None:
                report.write_log(self._logs, result)
            table.finished(result)

        watcher = Watcher(finished, table.turned)
        with table.showing():
            stop = self._interruption.event
            return drive(runs, crew, watcher, stop, fail_fast=self._wishes.fail_fast)

    def _report(self, results: Sequence[Result], hosts: report.Hosts) -> None:
        if self._wishes.junit is not None:
            data = report.junit_document(results, hosts, self._guest.image)
            write_whole(self._wishes.junit, data)
        if self._wishes.as_json:
            document = report.document(results, hosts, self._logs)
            click.echo(json.dumps(document, indent=2))
        for name, machine in report.where(hosts).items():
            click.echo(f"{name}: {machine}", err=self._wishes.as_json)
        click.echo(report.summary(results), err=self._wishes.as_json)
