"""``pyvmm list``: running VMs, here and in emulated hosts."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pyvmm.base.units import show_size
from pyvmm.commands._options import json_option
from pyvmm.commands._output import aligned, show
from pyvmm.commands.vms._running import Vm, all_vms, document, exit_code
from pyvmm.errors import UsageError

COLUMNS = ("NAME", "STATE", "PID", "VCPUS", "MEMORY", "SVE", "HOST")


@click.command(name="list")
@click.option("-i", "--run", is_flag=True, help="Show running VMs; this is the default.")
@click.option("-r", "--rootfs", is_flag=True, hidden=True)
@json_option
def list_vms(run: bool, rootfs: bool, as_json: bool) -> int:
    """Show running VMs.

    They run on this machine's KVM, or in an emulated host.  Exit codes: 0 success; 3 an emulated
    host does not answer, and its VMs are missing.
    """
    if rootfs:
        raise UsageError("--rootfs: pyvmm has no root file systems for guests")
    found = all_vms()
    infos = [{**vm.info, "host": vm.place.name} for vm in found.vms]
    show(as_json, document(infos, found.failures), lines(found.vms))
    return exit_code(found.failures)


def lines(vms: list[Vm]) -> Iterator[str]:
    """Yield the lines of the table."""
    return aligned([COLUMNS, *map(_row, vms)])


def _row(vm: Vm) -> tuple[str, ...]:
    info = vm.info
    if not info["ok"]:
        return (vm.name, info["state"], "", "", "", "", vm.place.label)
    vls = ",".join(map(str, info["sve_vls"])) or "off"
    memory = show_size(info["memory_bytes"])
    return (vm.name, info["state"], str(info["pid"]), str(info["vcpus"]), memory, vls,
            vm.place.label)  # fmt: skip
