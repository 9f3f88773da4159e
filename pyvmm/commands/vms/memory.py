"""``pyvmm memory``: plug or unplug memory of a running guest."""

from __future__ import annotations

import click

from pyvmm.base.units import parse_size
from pyvmm.commands._fields import read_option
from pyvmm.commands.vms._guestmemory import (
    ask_and_wait,
    memory_line,
    missing_of_memory,
    wait_option,
)
from pyvmm.commands.vms._running import answered, chosen, print_json, verdict
from pyvmm.control.wire import Message


@click.command()
@click.argument("name")
@click.argument("size", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@wait_option
def memory(name: str, size: str | None, as_json: bool, wait: float | None) -> int:
    """Plug or unplug memory of a running guest.

    NAME is the VM's, or HOST/NAME.  SIZE is how much the guest is to have in all, in MiB or with a
    suffix B K M G T P: from what it was started with to what --hotplug leaves room for.  Without
    SIZE, show what it has.  The guest needs a driver (Linux: virtio_mem), which plugs and unplugs
    what it can.
    """
    request: Message = {"do": "memory"}
    if size is not None:
        request["size"] = read_option("SIZE", parse_size, size)
    replies = [ask_and_wait(vm, request, missing_of_memory, wait) for vm in chosen(name, False)]
    if as_json:
        print_json(replies)
        return verdict(replies)
    for reply in answered(replies):
        click.echo(f"{reply['name']}: {memory_line(reply)}")
    return verdict(replies)
