"""``pyvmm sweep``: run a guest at every set of vector lengths, on every host setting."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import click

from pyvmm.arm64.vl import VlSet
from pyvmm.base.files import write_whole
from pyvmm.base.signals import handling
from pyvmm.cli import echo
from pyvmm.commands._hostopts import CHOICE, settings_of
from pyvmm.commands._options import file_option, json_option
from pyvmm.commands._output import show
from pyvmm.commands.run import complete_image, find_image, run
from pyvmm.commands.sweep._line import command, query
from pyvmm.commands.sweep._table import SweepTable
from pyvmm.errors import EXIT_SIGNAL, UsageError
from pyvmm.host import is_local, say_why_emulated
from pyvmm.host.progress import Progress
from pyvmm.host.settings import KINDS, HostSettings
from pyvmm.sweep import report
from pyvmm.sweep.crew import Crew, dask, local
from pyvmm.sweep.drive import Callbacks, RunResult, ask_hosts, drive
from pyvmm.sweep.plan import Guest, Run, alternatives, host_name, parse_cpus, parse_sets, plan

# Options of `pyvmm run` that the sweep sets itself, and beginnings of others.
OWN = ("--cpus", "--timeout", "--initrd", "--kernel", "--no-sve")
OWN_BEGIN = ("--sve", "--host")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(
    epilog="--sve-vls-each, --cpus, --host-kernel and --host-cpu may be repeated, or have several "
    "values with semicolons between them; every combination is run. Exit codes: 0 every run "
    "passed (its guest ended with 0); 1 some did not; 2 usage; 3 a host lacks something; 128+n "
    "signal n, after a report of the finished runs."
)
@click.argument("image", shell_complete=complete_image)
@click.argument("more", nargs=-1, metavar="[-- RUN OPTIONS]")
@click.option(
    "--sve-vls-each", "sets", multiple=True, metavar="all|SET;...",
    help="Sets of vector lengths in bits: '128;128,256'; all: every set that the host can give; "
    "none: without SVE.",
)  # fmt: skip
@click.option("-c", "--cpus", multiple=True, metavar="N,...", help="vCPUs.")
@click.option("-p", "--params", default="", metavar="TEXT", help="Kernel command line.")
@click.option("-i", "--initrd", metavar="FILE", help="Initial RAM disk.")
@click.option("--timeout", type=float, metavar="SECONDS", help="End a guest after SECONDS.")
@click.option(
    "--host", type=click.Choice(KINDS), default="auto", envvar="PYVMM_HOST",
    help="Where to run, as for `pyvmm run`.",
)  # fmt: skip
@click.option(
    "--host-kernel", "kernels", multiple=True, envvar="PYVMM_HOST_KERNEL", metavar=CHOICE,
    help="Emulated hosts' kernels, as for `pyvmm run`.",
)  # fmt: skip
@click.option(
    "--host-model", "models", multiple=True, envvar="PYVMM_HOST_MODEL", metavar="NAME",
    help="Ready-made emulated hosts, as for `pyvmm run`.",
)  # fmt: skip
@click.option(
    "--host-machine", envvar="PYVMM_HOST_MACHINE", metavar="OPTIONS",
    help="Properties of the emulated hosts' machine, as for `pyvmm run`.",
)  # fmt: skip
@click.option(
    "--host-qemu", envvar="PYVMM_HOST_QEMU", metavar=CHOICE,
    help="The emulated hosts' QEMU, as for `pyvmm run`.",
)  # fmt: skip
@click.option(
    "--host-cpu", "host_cpus", multiple=True, envvar="PYVMM_HOST_CPU", metavar="CPU",
    help="The emulated hosts' CPUs, as for `pyvmm run`.",
)  # fmt: skip
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), metavar="N", show_default="CPUs",
    help="The number of runs at a time, on this machine.",
)  # fmt: skip
@click.option(
    "--scheduler", metavar="ADDRESS", help="Submit the runs to the Dask cluster at ADDRESS."
)
@click.option(
    "--logs", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write a log of each run to DIR.",
)  # fmt: skip
@file_option("--junit", "Write a JUnit report to FILE.")
@json_option
@click.option("--fail-fast", is_flag=True, help="End the sweep at the first run that fails.")
def sweep(image: str, more: tuple[str, ...], **options: Any) -> int:
    """Run a guest at every set of SVE vector lengths.

    Every combination of set, number of vCPUs and host setting is a `pyvmm run`; several run at a
    time. A table shows them, live on a terminal. IMAGE is as for `pyvmm run`; options after -- are
    options of `pyvmm run`, for each run.
    """
    _refuse_own(more)
    timeout_s = options["timeout"]
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise UsageError(f"--timeout {timeout_s:g}: needs a time above 0 s")
    params = ("--params", options["params"]) if options["params"] else ()
    guest = Guest(
        image=image,
        initrd=options["initrd"],
        options=(*params, *more),
        timeout_s=timeout_s,
    )
    if options["jobs"] is not None and options["scheduler"] is not None:
        raise UsageError(
            "--jobs is for this machine; on a cluster, the workers' threads set the number of jobs",
            hint="dask worker ADDRESS --nthreads N",
        )
    return Sweep(guest, options).run(
        parse_sets(options["sets"]), parse_cpus(options["cpus"]), _hosts(options)
    )


def _refuse_own(more: Sequence[str]) -> None:
    """Refuse options that would make a run differ from the sweep's report.

    They are parsed as `pyvmm run` parses them: -c2 and -vc 2 are --cpus too.
    """
    values, _, given = run.make_parser(click.Context(run)).parse_args(list(more))
    if isinstance(values["image"], str):  # otherwise it is click's UNSET
        raise UsageError(f"{values['image']} after --: a sweep has one image, before the --")
    for option in given:
        name = option.opts[-1]
        if name in OWN or name.startswith(OWN_BEGIN):
            raise UsageError(
                f"{name} after --: the sweep sets it", hint="`pyvmm sweep --help` shows how"
            )


def _hosts(options: dict[str, Any]) -> list[HostSettings]:
    """Return every combination of models, kernels and CPUs; this machine's KVM is ``local``."""
    models = _or_default(alternatives(options["models"], "--host-model", ",;"))
    kernels = _or_default(alternatives(options["kernels"], "--host-kernel", ",;"))
    cpus = _or_default(alternatives(options["host_cpus"], "--host-cpu"))
    same = {name: options[f"host_{name}"] for name in ("qemu", "machine")}
    hosts = [
        HostSettings(
            kind=options["host"], **settings_of(model, {"kernel": kernel, "cpu": cpu, **same})
        )
        for model, kernel, cpu in product(models, kernels, cpus)
    ]
    if options["scheduler"] is not None:  # each worker chooses its own host
        return hosts
    chosen = [host.replace(kind="local") if is_local(host) else host for host in hosts]
    for host in chosen:
        say_why_emulated(host, Progress().say)
    return chosen


def _or_default(values: list[str]) -> list[str | None]:
    """Return the values of an option, or None for its default."""
    return [*values] or [None]


class Sweep:
    """One sweep, from asking the hosts to its exit code."""

    def __init__(self, guest: Guest, options: dict[str, Any]) -> None:
        self._guest = guest
        self._options = options
        self._as_json: bool = options["as_json"]
        self._logs = None if options["logs"] is None else report.log_directory(options["logs"])
        self._stop = Event()
        self._signal = 0  # the last signal that ended the sweep

    def run(
        self,
        wanted: Sequence[VlSet | None],
        cpus: Sequence[int | None],
        settings: Sequence[HostSettings],
    ) -> int:
        """Run the sweep and report its results; return the exit code."""
        with handling(ENDING, self._interrupt), self._crew() as crew:
            if sys.stderr.isatty():  # making an emulated host takes a while
                names = "; ".join(map(host_name, settings))
                echo(f"pyvmm: asking for vector lengths: {names} ...", err=True)
            try:
                hosts = ask_hosts([query(where) for where in settings], crew, self._stop)
            except KeyboardInterrupt:
                return EXIT_SIGNAL + self._signal
            lengths = {where: probe.vls for where, probe in hosts.items()}
            runs = plan(self._guest, wanted, cpus, lengths, command)
            results = self._drive(runs, crew)
            self._report(results, hosts)
        if self._stop.is_set():
            return EXIT_SIGNAL + self._signal
        return report.exit_code(results)

    def _interrupt(self, number: int, frame: object) -> None:
        self._signal = number
        self._stop.set()

    def _crew(self) -> AbstractContextManager[Crew]:
        """Return the executors; for a cluster, read the guest's files."""
        if self._options["scheduler"] is None:
            return local(self._options["jobs"] or len(os.sched_getaffinity(0)))
        self._guest = self._guest.packed(find_image(self._guest.image))
        return dask(self._options["scheduler"])

    def _drive(self, runs: Sequence[Run], crew: Crew) -> list[RunResult]:
        # JSON alone goes to standard output.
        table = SweepTable(runs, sys.stderr if self._as_json else sys.stdout)

        def finished(result: RunResult) -> None:
            if self._logs is not None:
                report.write_log(self._logs, result)
            table.finished(result)

        callbacks = Callbacks(finished, table.running)
        with table.showing():
            fail_fast = self._options["fail_fast"]
            return drive(runs, crew, callbacks, self._stop, fail_fast=fail_fast)

    def _report(self, results: Sequence[RunResult], hosts: report.Hosts) -> None:
        if self._options["junit"] is not None:
            data = report.junit_document(results, hosts, self._guest.image)
            write_whole(self._options["junit"], data)
        if self._as_json:
            show(True, report.document(results, hosts, self._logs), ())
        for name, machine in report.where(hosts).items():
            echo(f"{name}: {machine}", err=self._as_json)
        echo(report.summary(results), err=self._as_json)
