"""``pyvmm debug``: look into VMs that run."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pyvmm.commands._registers import PARTS, show_registers
from pyvmm.commands._vms import answered, chosen, print_json, tell, verdict, vm_options
from pyvmm.errors import UsageError


@click.command()
@click.option("-d", "--dump", is_flag=True, help="Show the registers of the vCPUs.")
@click.option("--vcpu", type=int, metavar="N", help="Of that vCPU alone.")
@click.option("--part", type=click.Choice(PARTS), default="all", help="Which registers to show.")
@click.option("--whole", is_flag=True, help="Z, P and FFR beyond the guest's vector length too.")
@click.option("-s", "--sysrq", metavar="KEY", help="Send a Linux guest that sysrq, as `t`.")
@click.option("-m", "--nmi", type=int, metavar="CPU", hidden=True)
@vm_options
def debug(
    name: str | None, everything: bool, as_json: bool, dump: bool, vcpu: int | None,
    part: str, whole: bool, sysrq: str | None, nmi: int | None,
) -> int:  # fmt: skip
    """Show VMs' registers, or send a sysrq.

    -d stops the VM for a moment and shows every register KVM has of each vCPU, by the names and
    with the fields that Arm gives them. -s presses BREAK and the key on the guest's serial console.
    """
    if nmi is not None:
        raise UsageError("--nmi: KVM has no NMI to send to an arm64 guest")
    if dump == (sysrq is not None):
        raise UsageError("what to do? give -d to show registers, or -s KEY to send a sysrq")
    if sysrq is not None:
        if len(sysrq) != 1 or not sysrq.isascii():
            raise UsageError(f"--sysrq {sysrq}: not one key; `h` has Linux list them")
        return tell(chosen(name, everything), {"do": "sysrq", "key": sysrq}, as_json, "sent")
    request = {"do": "registers", "vcpu": vcpu, "whole": whole}
    replies = [vm.ask(request) for vm in chosen(name, everything)]
    if as_json:
        print_json(replies)
        return verdict(replies)
    for reply in answered(replies):
        click.echo(f"{reply['name']}:")
        for registers in reply["vcpus"]:
            for line in (*show_registers(registers, part), *_exits(registers["exits"])):
                click.echo(line)
    return verdict(replies)


def _exits(counts: dict[str, int]) -> Iterator[str]:
    """How often the vCPU left KVM_RUN for pyvmm."""
    causes = ", ".join(f"{cause} {count}" for cause, count in counts.items())
    yield f"  exits    {causes or 'none'}"
