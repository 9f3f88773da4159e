"""``pyvmm stop``: end VMs."""

from __future__ import annotations

import click

from pyvmm.commands.vms._running import chosen, tell, vm_options


@click.command()
@vm_options
def stop(name: str | None, everything: bool, as_json: bool) -> int:
    """End VMs.

    They end at once: the guests are not asked.  `pyvmm run` returns 0 then, as under lkvm.
    When this returns, the VMs have ended.
    """
    return tell(chosen(name, everything), {"do": "stop"}, as_json, "stopped")
