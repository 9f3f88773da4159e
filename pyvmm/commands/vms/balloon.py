"""``pyvmm balloon``: take memory back from guests, or return it."""

from __future__ import annotations

import click

from pyvmm.base.units import parse_size, read_named
from pyvmm.commands.vms._guestmemory import (
    ask_and_wait,
    balloon_line,
    mib,
    missing_of_balloon,
    wait_option,
)
from pyvmm.commands.vms._running import chosen, report, vm_options
from pyvmm.control.wire import Message
from pyvmm.errors import UsageError


@click.command()
@click.option("-i", "--inflate", metavar="SIZE", help="Take SIZE more from the guest.")
@click.option("-d", "--deflate", metavar="SIZE", help="Return SIZE to the guest.")
@click.option(
    "--size", metavar="SIZE", help="Set the balloon to SIZE in all; 0 returns everything."
)
@click.option(
    "--collect", is_flag=True, help="Take the memory that the guest does not use now, once."
)
@wait_option
@vm_options
def balloon(
    name: str | None, everything: bool, as_json: bool, inflate: str | None, deflate: str | None,
    size: str | None, collect: bool, wait: float | None,
) -> int:  # fmt: skip
    """Take memory back from guests, or return it.

    Sizes are in MiB, or have a suffix B K M G T P.  The VM needs --balloon, and the guest needs a
    driver. The driver gives up memory that the guest can spare.  This command and `pyvmm stat -m`
    show how much it has given up.  With --collect the guest reports its free memory once. This
    machine can use that memory until the guest needs it again.
    """
    request = _request(inflate, deflate, size, collect)
    replies = []
    found = chosen(name, everything)
    for vm in found.vms:
        replies.append(ask_and_wait(vm, request, missing_of_balloon, wait))
        if collect and not replies[-1]["ok"]:
            vm.ask({"do": "balloon", "collect": False})

    def lines(reply: Message) -> list[str]:
        collected = f"; {mib(reply['balloon']['hinted_bytes'])} free so far" if collect else ""
        return [f"{reply['name']}: {balloon_line(reply)}{collected}"]

    return report(found, replies, as_json, lines)


def _request(inflate: str | None, deflate: str | None, size: str | None, collect: bool) -> Message:
    """Return the request that the options make."""
    if collect + sum(option is not None for option in (inflate, deflate, size)) > 1:
        raise UsageError("-i, -d, --size and --collect contradict each other; give one")
    request: Message = {"do": "balloon"}
    if inflate is not None:
        request["more"] = read_named("--inflate", parse_size, inflate)
    elif deflate is not None:
        request["more"] = -read_named("--deflate", parse_size, deflate)
    elif size is not None:
        request["size"] = read_named("--size", parse_size, size)
    elif collect:
        request["collect"] = True
    return request
