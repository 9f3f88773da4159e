"""``pyvmm dump``: write a running VM's memory and registers as a core file."""

from __future__ import annotations

from pathlib import Path

import click

from pyvmm.base.units import show_size
from pyvmm.cli import echo, say
from pyvmm.commands._options import FILE, json_option
from pyvmm.commands._output import show
from pyvmm.commands.vms._running import chosen, document, exit_code, readable, successes
from pyvmm.host import share
from pyvmm.host.share import Needs

NO_VMCOREINFO = (
    "no VMCOREINFO in the guest's memory: drgn and crash need it",
    "is the guest a Linux that has booted, with CONFIG_VMCORE_INFO or CONFIG_CRASH_CORE?",
)


@click.command(epilog="Exit codes: 0 written; 1 the VM has failed; 2 usage; 3 the disk is full.")
@click.argument("name")
@click.argument("out", type=FILE)
@json_option
def dump(name: str, out: Path, as_json: bool) -> int:
    """Write a running VM's memory and registers as a core file.

    OUT is an ELF core file of the guest's physical memory, for drgn, crash and gdb. The VM is
    paused meanwhile. OUT holds the guest's memory, so only you can read it (mode 0600).
    """
    (vm,) = chosen(name, False).vms
    path = out.absolute()
    needs = None
    if vm.place.running is not None:
        share.refuse_hidden((path,))
        needs = Needs(creates=(path,))
    replies = [vm.ask({"do": "dump", "file": str(path)}, needs)]
    if as_json:
        show(True, document(replies), ())
    for reply in successes(replies):
        size, has_info = readable(
            reply, lambda reply: (show_size(reply["size"]), bool(reply["has_vmcoreinfo"]))
        )
        if not has_info:
            say(*NO_VMCOREINFO)
        if not as_json:
            echo(f"{reply['name']}: written: {out}, {size}, sparse", err=True)
    return exit_code(replies)
