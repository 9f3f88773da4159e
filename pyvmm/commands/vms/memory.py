"""``pyvmm memory``: plug or unplug memory of a running guest."""

from __future__ import annotations

import click

from pyvmm.base.units import parse_size, read_named
from pyvmm.commands._options import json_option
from pyvmm.commands.vms._guestmemory import (
    ask_and_wait,
    memory_line,
    missing_of_memory,
    wait_option,
)
from pyvmm.commands.vms._running import chosen, report
from pyvmm.control.wire import Message


@click.command()
@click.argument("name")
@click.argument("size", required=False)
@json_option
@wait_option
def memory(name: str, size: str | None, as_json: bool, wait: float | None) -> int:
    """Plug or unplug memory of a running guest.

    NAME is the VM's name, or HOST/NAME.  SIZE is the guest's total memory, in MiB or with a suffix
    B K M G T P. It is between the VM's --mem and the sum of --mem and --hotplug.  Without SIZE,
    show the guest's memory. The guest needs a driver (Linux: virtio_mem), which plugs and unplugs
    as much as it can.
    """
    request: Message = {"do": "memory"}
    if size is not None:
        request["size"] = read_named("SIZE", parse_size, size)
    found = chosen(name, False)
    replies = [ask_and_wait(vm, request, missing_of_memory, wait) for vm in found.vms]
    return report(found, replies, as_json, lambda reply: [f"{reply['name']}: {memory_line(reply)}"])
