"""``pyvmm pause``, ``resume`` and ``stop``: stop VMs' vCPUs, let them run again, or end VMs."""

from __future__ import annotations

import click

from pyvmm.commands.vms._running import chosen, send, vm_options


@click.command()
@vm_options
def pause(name: str | None, everything: bool, as_json: bool) -> int:
    """Stop VMs' vCPUs and clocks.

    The vCPUs stop between two instructions, and so does the guest's virtual counter.  The guest's
    clocks and timers do not advance during the pause. Only its real-time clock (`hwclock`) does.
    """
    return send(chosen(name, everything), {"do": "pause"}, as_json, "paused")


@click.command()
@vm_options
def resume(name: str | None, everything: bool, as_json: bool) -> int:
    """Resume paused VMs."""
    return send(chosen(name, everything), {"do": "resume"}, as_json, "resumed")


@click.command()
@vm_options
def stop(name: str | None, everything: bool, as_json: bool) -> int:
    """End VMs.

    They end at once: the guests are not asked to shut down.  `pyvmm run` then returns 0, as lkvm
    does.
    When this command returns, the VMs have ended.
    """
    return send(chosen(name, everything), {"do": "stop"}, as_json, "stopped")
