"""Running VMs: on this machine, and in every emulated host that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import click

from pyvmm import host
from pyvmm.base.records import Record, made
from pyvmm.cli import echo, say
from pyvmm.commands._fields import spell
from pyvmm.commands._options import added, json_option
from pyvmm.commands._output import show
from pyvmm.control import client
from pyvmm.control.wire import (
    Message,
    WireError,
    failure_of,
    is_info,
    pack,
    parse_reply,
)
from pyvmm.errors import EXIT_OK, HostError, UsageError
from pyvmm.host.capture import capture
from pyvmm.host.connection import Unreachable
from pyvmm.host.running import Running, all_running
from pyvmm.host.share import Needs

T = TypeVar("T")

SCHEMA = 1
RELAY_S = 50.0  # a busy emulated host takes long to start the relay
RELAY = ["python3", "-m", "pyvmm.control.client"]

# --json, and lkvm's options that choose VMs
vm_options = added(
    click.option("-a", "--all", "everything", is_flag=True, help="All of your VMs."),
    click.option("-n", "--name", metavar="NAME", help="The VM of that name (or HOST/NAME)."),
    json_option,
)


class VmHost(Record):
    """An emulated host that runs VMs; None is this machine."""

    running: Running | None

    @property
    def name(self) -> str | None:
        """The emulated host's name."""
        return self.running.path.name if self.running else None

    @property
    def label(self) -> str:
        """The name of the place in -n HOST/NAME."""
        return self.name or "local"

    def ask(self, questions: Sequence[Message], needs: Needs | None = None) -> list[Message]:
        """Return the replies to questions about the VMs there, in order.

        ``needs`` are the files that a save opens, for an emulated host.
        """
        if self.running is None:
            return client.at_once(client.answer, questions)
        lines = b"".join(map(pack, questions))
        requests = [question.get("request") or {} for question in questions]
        timeout_s = max(map(client.timeout_of, requests), default=0.0) + RELAY_S
        answers = capture(
            self.running, RELAY, lines, control=True, timeout_s=timeout_s, needs=needs
        )
        try:
            replies = [parse_reply(line) for line in answers.splitlines()]
        except WireError as error:
            raise HostError(f"the emulated host's answer is malformed: {error}") from error
        if len(replies) != len(questions):
            raise HostError("the emulated host did not answer every question")
        return replies


class Vm(Record):
    """A running VM: its place, and its description of itself."""

    place: VmHost
    info: Message

    @property
    def name(self) -> str:
        """The VM's name."""
        return str(self.info["name"])

    def ask(self, request: Message, needs: Needs | None = None) -> Message:
        """Return the VM's reply to one request; see ``ask_all``."""
        (reply,) = ask_all([self], request, needs)
        return reply


class Found(Record):
    """VMs, and a failure for each emulated host that did not answer."""

    vms: list[Vm]
    failures: list[Message] = made(list)


def ask_all(vms: Sequence[Vm], request: Message, needs: Needs | None = None) -> list[Message]:
    """Send VMs a request at the same time; return their replies, with their names and places.

    "ok" is false in the reply of a VM that refuses, and of each VM at a place that does not answer.
    """
    places = {id(vm.place): vm.place for vm in vms}

    def ask_at(place: VmHost) -> Iterator[Message]:
        there = [vm.name for vm in vms if vm.place is place]
        try:
            replies = place.ask([{"vm": name, "request": request} for name in there], needs)
        except HostError as error:
            replies = [failure_of(error)] * len(there)
        return map(_spelled, replies)

    replies = dict(zip(places, client.at_once(ask_at, list(places.values())), strict=True))
    ours = [{"name": vm.name, "host": vm.place.name} for vm in vms]
    return [
        {**own, **next(replies[id(vm.place)]), **own} for vm, own in zip(vms, ours, strict=True)
    ]


def _spelled(reply: Message) -> Message:
    """Put options in place of fields in the texts of a failure."""
    return reply | {key: spell(reply[key]) for key in ("error", "hint") if reply.get(key)}


def all_vms(label: str = "") -> Found:
    """Return the VMs of this user, or those at the place with that label.

    An emulated host that does not answer is reported on stderr, and in the result.
    """
    places = list(_places())
    places = [place for place in places if place.label == label] or places
    found = Found([])
    for place, there in zip(places, client.at_once(_vms_at, places), strict=True):
        if isinstance(there, HostError):
            say(f"{place.label}: {there.message}", there.hint)
            found.failures.append({"host": place.name, **_spelled(failure_of(there))})
        else:
            found.vms.extend(there)
    return found


def chosen(name: str | None, everything: bool) -> Found:
    """Return the VMs that the options -n and -a choose.

    With -n a host that does not answer is no failure if another one has the VM.

    Raises:
        UsageError: they choose none, or two VMs have the name.
        HostError: they choose none, and a host did not answer.
    """
    if everything and name is not None:
        raise UsageError("-a and -n contradict each other; give one")
    asked = all_vms((name or "").rpartition("/")[0])
    if everything:
        return asked
    vms = asked.vms
    running = ", ".join(vm.name for vm in vms) or "none"
    if name is None:
        raise UsageError("which VM? give -n NAME, or -a for all", hint=f"running: {running}")
    found = [vm for vm in vms if name in (vm.name, f"{vm.place.label}/{vm.name}")]
    if not found and asked.failures:
        hosts = ", ".join(failure["host"] for failure in asked.failures)
        raise HostError(
            f"no VM called {name} was found, but not every host answered: {hosts}",
            hint=f"running elsewhere: {running}",
        )
    if not found:
        raise UsageError(f"no VM called {name} is running", hint=f"running: {running}")
    if len(found) > 1:
        names = " or ".join(f"{vm.place.label}/{vm.name}" for vm in found)
        raise UsageError(f"{len(found)} VMs are called {name}", hint=f"give -n {names}")
    return Found(found)


def send(found: Found, request: Message, as_json: bool, done: str) -> int:
    """Send VMs a request; report that it is done, or print the replies as JSON."""
    replies = ask_all(found.vms, request)
    if as_json:
        show(True, document(replies, found.failures), ())
    elif not replies and not found.failures:
        echo("no VM is running", err=True)
    for reply in successes(replies):
        if not as_json:
            echo(f"{reply['name']}: {done}", err=True)
    return exit_code([*replies, *found.failures])


def successes(replies: list[Message]) -> Iterator[Message]:
    """Yield the successful replies; report the others on stderr."""
    for reply in replies:
        if reply["ok"]:
            yield reply
        else:
            say(f"{reply['name']}: {reply['error']}", reply["hint"])


def exit_code(replies: list[Message]) -> int:
    """Return the command's exit code for these replies."""
    return max((reply["exit_code"] for reply in replies if not reply["ok"]), default=EXIT_OK)


def report(
    found: Found,
    replies: list[Message],
    as_json: bool,
    lines: Callable[[Message], Iterable[str]],
) -> int:
    """Print the replies as JSON, or the lines about each successful one; return the exit code."""
    shown: list[str] = []
    codes = [exit_code([*replies, *found.failures])]
    for reply in [] if as_json else successes(replies):
        try:
            shown += readable(reply, lambda reply: list(lines(reply)))
        except HostError as error:
            say(error.message, error.hint)
            codes.append(error.exit_code)
    show(as_json, document(replies, found.failures), shown)
    return max(codes)


def readable(reply: Message, read: Callable[[Message], T]) -> T:
    """Return ``read(reply)``; the reply is untrusted, because a guest that escaped can choose it.

    Raises: HostError, if the reply lacks a part, or a part has another type.
    """
    try:
        return read(reply)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise HostError(
            f"{reply['name']}: the VM's reply is malformed ({type(error).__name__}: {error})",
            hint="use the version of pyvmm that runs the VM",
        ) from error


def document(vms: list[Message], failures: Sequence[Message] = ()) -> Message:
    """Return data about VMs, and about hosts that did not answer, as a JSON document."""
    silent = [{key: failure[key] for key in ("host", "error", "hint")} for failure in failures]
    return {"schema": SCHEMA, "vms": vms, "hosts_not_answering": silent}


def _places() -> Iterator[VmHost]:
    yield VmHost(None)
    if host.describe_inside() is None:
        for running in all_running():
            yield VmHost(running)


def _vms_at(place: VmHost) -> list[Vm] | HostError:
    """Return the VMs at a place, or why its emulated host does not answer."""
    try:
        (reply,) = place.ask([{"vm": None}])
    except Unreachable:  # it has just ended, with its VMs
        return []
    except HostError as error:
        if place.running is None:
            raise
        return error
    if place.running is not None and not _is_list(reply.get("vms")):
        return HostError("the emulated host's list of VMs is malformed")
    return [Vm(place, info) for info in reply["vms"]]


def _is_list(infos: object) -> bool:
    """Return whether an emulated host's answer is a list of VMs."""
    return isinstance(infos, list) and all(map(_is_answer, infos))


def _is_answer(info: object) -> bool:
    """Return whether an answer describes a VM, or has the reason why the VM did not answer."""
    if not isinstance(info, dict) or not isinstance(info.get("name"), str):
        return False
    if info.get("ok") is True:
        return is_info(info, info["name"])
    return isinstance(info.get("state"), str)
