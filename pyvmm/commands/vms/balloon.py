"""``pyvmm balloon``: take memory of running guests back, or give it again."""

from __future__ import annotations

import click

from pyvmm.base.units import parse_size
from pyvmm.commands._fields import read_option
from pyvmm.commands.vms._guestmemory import (
    ask_and_wait,
    balloon_line,
    mib,
    missing_of_balloon,
    wait_option,
)
from pyvmm.commands.vms._running import answered, chosen, print_json, verdict, vm_options
from pyvmm.control.wire import Message
from pyvmm.errors import UsageError


@click.command()
@click.option("-i", "--inflate", metavar="SIZE", help="Take so much more from the guest.")
@click.option("-d", "--deflate", metavar="SIZE", help="Give the guest so much again.")
@click.option("--size", metavar="SIZE", help="Take so much in all; 0 gives everything back.")
@click.option("--collect", is_flag=True, help="Take what the guest does not use now, for once.")
@wait_option
@vm_options
def balloon(
    name: str | None, everything: bool, as_json: bool, inflate: str | None, deflate: str | None,
    size: str | None, collect: bool, wait: float | None,
) -> int:  # fmt: skip
    """Take memory of guests back, or give it again.

    Sizes are in MiB, or have a suffix B K M G T P.  The VM needs --balloon and the guest a driver,
    which gives up what it can spare: how far it has come is shown, and pyvmm stat -m tells.
    With --collect the guest says once what is free, and this machine has it back until the guest
    uses it again.
    """
    request = _request(inflate, deflate, size, collect)
    replies = []
    for vm in chosen(name, everything):
        replies.append(ask_and_wait(vm, request, missing_of_balloon, wait))
        if collect and not replies[-1]["ok"]:
            vm.ask({"do": "balloon", "collect": False})
    if as_json:
        print_json(replies)
        return verdict(replies)
    for reply in answered(replies):
        collected = f"; {mib(reply['balloon']['hinted_bytes'])} free so far" if collect else ""
        click.echo(f"{reply['name']}: {balloon_line(reply)}{collected}")
    return verdict(replies)


def _request(inflate: str | None, deflate: str | None, size: str | None, collect: bool) -> Message:
    """What the options ask of a VM."""
    if collect + sum(option is not None for option in (inflate, deflate, size)) > 1:
        raise UsageError("-i, -d, --size and --collect say different things; give one")
    request: Message = {"do": "balloon"}
    if inflate is not None:
        request["more"] = read_option("--inflate", parse_size, inflate)
    elif deflate is not None:
        request["more"] = -read_option("--deflate", parse_size, deflate)
    elif size is not None:
        request["size"] = read_option("--size", parse_size, size)
    elif collect:
        request["collect"] = True
    return request
