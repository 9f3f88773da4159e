"""``pyvmm stop``: end VMs."""

from __future__ import annotations

import click

from pyvmm.commands.vms._running import chosen, send, vm_options


@click.command()
@vm_options
def stop(name: str | None, everything: bool, as_json: bool) -> int:
    """End VMs.

    They end at once, without asking the guests.  `pyvmm run` then returns 0, as lkvm does.
    When this command returns, the VMs have ended.
    """
    return send(chosen(name, everything), {"do": "stop"}, as_json, "stopped")
