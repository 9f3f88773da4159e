"""``pyvmm pause`` and ``pyvmm resume``: stop VMs' vCPUs for a while."""

from __future__ import annotations

import click

from pyvmm.commands.vms._running import chosen, tell, vm_options


@click.command()
@vm_options
def pause(name: str | None, everything: bool, as_json: bool) -> int:
    """Stop VMs' vCPUs, and the time they see.

    They stop between two instructions.  The guest's virtual counter stops as well: when it is
    resumed, no time has passed by its clocks and timers; only its real-time clock (`hwclock`)
    tells.
    """
    return tell(chosen(name, everything), {"do": "pause"}, as_json, "paused")


@click.command()
@vm_options
def resume(name: str | None, everything: bool, as_json: bool) -> int:
    """Let paused VMs go on."""
    return tell(chosen(name, everything), {"do": "resume"}, as_json, "resumed")
