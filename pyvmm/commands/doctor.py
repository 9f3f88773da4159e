"""``pyvmm doctor``: what this machine has and lacks."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from typing import Any

import click

from pyvmm import host
from pyvmm.base.output import printable
from pyvmm.commands._fields import spell
from pyvmm.commands._hostopts import host_options, run_here_or_forward
from pyvmm.commands._options import json_option
from pyvmm.commands._outer import outer_facts
from pyvmm.errors import EXIT_HOST, EXIT_OK, HostError, VmmError
from pyvmm.host.settings import HostSettings
from pyvmm.kvm.system import System
from pyvmm.machine.facts import REGISTERS, WRITABLE, Fact, kvm_facts, machine_facts
from pyvmm.snapshot.hostlimits import registers_here, writable_here

SCHEMA = 1
OUTER_VARIABLE = "PYVMM_DOCTOR_OUTER"  # carries the outer machine's facts into the host


@click.command()
@json_option
@host_options
def doctor(where: HostSettings, as_json: bool) -> int:
    """Show what this machine has and lacks.

    If commands run in an emulated host, check that host too, and make it the first time.
    If this is an arm64 machine whose /dev/kvm cannot be opened, show the reason and the remedy
    instead. Exit codes: 0 VMs can run; 3 they cannot.
    """
    facts = [
        fact.replace(lack=spell(fact.lack), remedy=spell(fact.remedy)) for fact in _gather(where)
    ]
    if as_json:
        click.echo(json.dumps(document(facts), indent=2))
    else:
        show(facts)
    return EXIT_HOST if any(fact.fatal for fact in facts) else EXIT_OK


def document(facts: Iterable[Fact]) -> dict[str, Any]:
    """Return the JSON document: each topic's names and values, and a list of what is missing."""
    facts = list(facts)
    topics: dict[str, dict[str, Any]] = {}
    for fact in facts:
        topics.setdefault(fact.topic, {})[fact.key] = fact.value
    lacks = [
        {
            "topic": fact.topic,
            "name": fact.key,
            "what": fact.lack,
            "remedy": fact.remedy or None,
            "fatal": fact.fatal,
        }
        for fact in facts
        if fact.lack
    ]
    return {
        "schema": SCHEMA,
        "vms_can_run": not any(fact.fatal for fact in facts),
        **topics,
        "lacks": lacks,
    }


def show(facts: Iterable[Fact]) -> None:
    """Print the facts as tables."""
    from rich.console import Console

    console = Console(highlight=False)
    facts = list(facts)
    for topic in dict.fromkeys(fact.topic for fact in facts):
        if topic in (REGISTERS, WRITABLE):
            continue
        chosen = [fact for fact in facts if fact.topic == topic]
        console.print(f"[bold]{topic}[/]")
        if topic == "capabilities":
            _show_capabilities(console, chosen)
        else:
            _show_topic(console, chosen)
    if any(fact.fatal for fact in facts):
        console.print("[red]VMs cannot run here.[/]")
    else:
        console.print("[green]VMs can run here.[/]")


def _gather(where: HostSettings) -> list[Fact]:
    """Return facts about the machine that would run VMs; an emulated host runs doctor itself.

    A /dev/kvm that cannot be opened is reported as a fact; it does not select an emulated host.
    """
    if _asks_this_machine(where):
        return [*_handed_in(), *machine_facts(), *confinement_facts(), *local_facts()]
    outer = list(outer_facts())
    os.environ[OUTER_VARIABLE] = json.dumps([fact.as_json() for fact in outer])
    try:
        run_here_or_forward(where)
    except VmmError as error:
        return [*outer, Fact.of_error("kvm", "emulated host", error)]
    raise AssertionError("the command was not forwarded")


def confinement_facts() -> Iterator[Fact]:
    """Yield facts about the confinement of running VMs on this machine."""
    from pyvmm.sandbox import landlock, seccomp

    less = "VMs run less confined"
    try:
        yield Fact("confinement", "Landlock ABI", landlock.abi())
    except landlock.Absent as absent:
        remedy = "boot a kernel with it, and with landlock in its `lsm=` parameter"
        yield Fact("confinement", "Landlock ABI", None, f"{absent}: {less}", remedy)
    has = seccomp.has_filters()
    lack = "" if has else f"the kernel has no seccomp filters: {less}"
    remedy = "" if has else "boot a kernel with CONFIG_SECCOMP_FILTER"
    yield Fact("confinement", "seccomp", has, lack, remedy)


def local_facts() -> Iterator[Fact]:
    """Yield facts about this machine's KVM; stop after the first fatal lack."""
    if platform.machine() != host.ARM64:
        yield Fact(
            "kvm",
            "arm64 guests",
            False,
            f"{platform.machine()} runs no arm64 guests",
            "leave `host`=local out: pyvmm then uses an emulated arm64 host",
            fatal=True,
        )
        return
    if (reason := host.why_not_local()) is not None:
        yield Fact.of_error("kvm", "device", reason)
        return
    try:
        with System.open(str(host.DEVICE)) as system:
            yield Fact("kvm", "device", str(host.DEVICE))
            yield from kvm_facts(system)
            for name, value in registers_here(system).items():
                yield Fact(REGISTERS, name, value)
            for name, value in writable_here(system).items():
                yield Fact(WRITABLE, name, value)
    except HostError as error:
        yield Fact.of_error("kvm", "device", error)


def _asks_this_machine(where: HostSettings) -> bool:
    try:
        return host.is_local(where)
    except HostError:
        return True


def _handed_in() -> list[Fact]:
    return [Fact(**fact) for fact in json.loads(os.environ.get(OUTER_VARIABLE, "[]"))]


def _show_topic(console: Any, facts: list[Fact]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for fact in facts:
        value = Text(printable(fact.shown or _words(fact.value)))
        if fact.lack:
            value = Text(printable(fact.lack), style="red" if fact.fatal else "yellow")
            if fact.remedy:
                value.append(f"\n{printable(fact.remedy)}", style="default")
        table.add_row(fact.name, value)
    console.print(table)


def _show_capabilities(console: Any, facts: list[Fact]) -> None:
    """Print the capabilities with their values, then the names of those that KVM lacks."""
    from rich.padding import Padding
    from rich.text import Text

    has = [
        fact.name if fact.value == 1 else f"{fact.name}={fact.value}"
        for fact in facts
        if fact.value
    ]
    lacks = [fact.name for fact in facts if not fact.value]
    console.print(Padding(Text("  ".join(map(printable, has))), (0, 2)))
    if lacks:
        console.print(Padding(Text("without:  " + "  ".join(lacks), style="dim"), (0, 2)))


def _words(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)
