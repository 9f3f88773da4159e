"""Running VMs, wherever they run: on this machine, or in any emulated host that is up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from pyvmm import host
from pyvmm.cli import say
from pyvmm.commands._fields import spell
from pyvmm.control import client
from pyvmm.control.wire import Message, failure_of, pack
from pyvmm.errors import EXIT_OK, HostError, UsageError
from pyvmm.host.capture import capture
from pyvmm.host.connection import Unreachable
from pyvmm.host.running import Running, all_running

SCHEMA = 1
RELAY_S = 50.0  # for a host to start what asks there, on a machine that is busy
RELAY = ["python3", "-m", "pyvmm.control.client"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Place:
    """Where VMs may run: an emulated host, or this machine where that is None."""

    running: Running | None

    @property
    def name(self) -> str | None:
        """The emulated host's name."""
        return self.running.path.name if self.running else None

    @property
    def label(self) -> str:
        """How -n NAME says which of two VMs of one name is meant."""
        return self.name or "local"

    def ask(self, questions: Sequence[Message]) -> list[Message]:
        """The answers to questions about the VMs there, in order."""
        if self.running is None:
            return client.answers(questions)
        lines = b"".join(map(pack, questions))
        requests = [question.get("request") or {} for question in questions]
        timeout_s = max(map(client.timeout_of, requests), default=0.0) + RELAY_S
        answers = capture(self.running, RELAY, lines, timeout_s=timeout_s)
        return [json.loads(line) for line in answers.splitlines()]


@dataclass(frozen=True, slots=True)
class Vm:
    """A running VM: where, and what it says of itself."""

    place: Place
    info: Message

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.info["name"])

    def ask(self, request: Message) -> Message:
        """Its reply to one request; see ``ask_all``."""
        (reply,) = ask_all([self], request)
        return reply


def ask_all(vms: Sequence[Vm], request: Message) -> list[Message]:
    """The replies of VMs to one request, with their names and places; "ok" says whether it worked.

    All are asked at the same time.  A place that has ended, or does not answer, is such a reply of
    each VM there: others give theirs.
    """
    places = {id(vm.place): vm.place for vm in vms}

    def ask_at(place: Place) -> Iterator[Message]:
        there = [vm.name for vm in vms if vm.place is place]
        try:
            replies = place.ask([{"vm": name, "request": request} for name in there])
        except HostError as error:
            replies = [failure_of(error)] * len(there)
        return map(_spelled, replies)

    replies = dict(zip(places, client.at_once(ask_at, list(places.values())), strict=True))
    return [{"name": vm.name, "host": vm.place.name, **next(replies[id(vm.place)])} for vm in vms]


def _spelled(reply: Message) -> Message:
    """Put options in place of fields in the texts of a failure."""
    return reply | {key: spell(reply[key]) for key in ("error", "hint") if reply.get(key)}


def vm_options(command: _Command) -> _Command:
    """Give a command lkvm's options that choose VMs, and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("-n", "--name", metavar="NAME", help="The VM of that name (or HOST/NAME)."),
        click.option("-a", "--all", "everything", is_flag=True, help="Every VM of yours."),
    ):
        command = option(command)
    return command


def everyone() -> list[Vm]:
    """Every VM of this user's; a place that does not answer is told of on stderr."""
    return [vm for there in client.at_once(_vms_at, list(_places())) for vm in there]


def chosen(name: str | None, everything: bool) -> list[Vm]:
    """The VMs that the options -n and -a choose.

    Raises: UsageError, where they choose none, or a name is that of two.
    """
    if everything and name is not None:
        raise UsageError("-a is every VM, and -n one of them; give one")
    vms = everyone()
    if everything:
        return vms
    running = ", ".join(vm.name for vm in vms) or "none"
    if name is None:
        raise UsageError("which VM? give -n NAME, or -a for all", hint=f"running: {running}")
    found = [vm for vm in vms if name in (vm.name, f"{vm.place.label}/{vm.name}")]
    if not found:
        raise UsageError(f"no VM called {name} is running", hint=f"running: {running}")
    if len(found) > 1:
        names = " or ".join(f"{vm.place.label}/{vm.name}" for vm in found)
        raise UsageError(f"{len(found)} VMs are called {name}", hint=f"say which: -n {names}")
    return found


def tell(vms: list[Vm], request: Message, as_json: bool, done: str) -> int:
    """Send VMs a request, and say that it is done, or print the replies as JSON."""
    replies = ask_all(vms, request)
    if as_json:
        print_json(replies)
    elif not replies:
        click.echo("no VM is running", err=True)
    for reply in answered(replies):
        if not as_json:
            click.echo(f"{reply['name']}: {done}", err=True)
    return verdict(replies)


def answered(replies: list[Message]) -> Iterator[Message]:
    """The replies that are no failures, in order; of the others the user is told."""
    for reply in replies:
        if reply["ok"]:
            yield reply
        else:
            say(f"{reply['name']}: {reply['error']}", reply["hint"])


def verdict(replies: list[Message]) -> int:
    """The exit code after these replies."""
    return max((reply["exit_code"] for reply in replies if not reply["ok"]), default=EXIT_OK)


def print_json(vms: list[Message]) -> None:
    """Print what is asked for about VMs as one document."""
    click.echo(json.dumps({"schema": SCHEMA, "vms": vms}, indent=2))


def _places() -> Iterator[Place]:
    yield Place(None)
    if host.describe_inside() is None:
        for running in all_running():
            yield Place(running)


def _vms_at(place: Place) -> list[Vm]:
    try:
        (reply,) = place.ask([{"vm": None}])
    except Unreachable:  # it has just ended, and what ran in it
        return []
    except HostError as error:
        if place.running is None:
            raise
        say(f"{place.label}: {error.message}", error.hint)
        return []
    return [Vm(place, info) for info in reply["vms"]]
