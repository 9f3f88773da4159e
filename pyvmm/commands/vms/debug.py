"""``pyvmm debug``: show registers, page tables and devices of running VMs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from pyvmm.commands.registers.addresses import (
    address_options,
    addresses_in,
    backtrace_lines,
    backtrace_option,
    kallsyms_option,
    known,
    symbols_option,
    table_lines,
    translation_lines,
    whole_tables,
)
from pyvmm.commands.registers.show import PARTS, show_registers
from pyvmm.commands.vms._running import (
    Vm,
    ask_all,
    chosen,
    readable,
    report,
    send,
    vm_options,
)
from pyvmm.control.wire import Message
from pyvmm.debugger.symbols import Symbols
from pyvmm.errors import UsageError


@click.command()
@click.option("-d", "--dump", is_flag=True, help="Show the registers of the vCPUs.")
@click.option("--vcpu", type=int, metavar="N", help="Only that vCPU.")
@click.option("--part", type=click.Choice(PARTS), default="all", help="Which registers to show.")
@click.option(
    "--whole", is_flag=True, help="Show Z, P and FFR at the vCPU's longest vector length."
)
@click.option("--devices", is_flag=True, help="Show the virtio devices and their queues.")
@backtrace_option
@symbols_option
@kallsyms_option
@address_options
@click.option(
    "-s", "--sysrq", metavar="KEY", help="Send the sysrq key KEY, such as t, to a Linux guest."
)
@click.option("-m", "--nmi", type=int, metavar="CPU", hidden=True)
@vm_options
def debug(
    name: str | None, everything: bool, as_json: bool, dump: bool, vcpu: int | None,
    part: str, whole: bool, devices: bool, translate: int | None, page_tables: bool,
    backtrace: bool, symbols: Path | None, kallsyms: bool, sysrq: str | None, nmi: int | None,
) -> int:  # fmt: skip
    """Show VMs' registers, page tables or devices, or send a sysrq.

    -d pauses the VM for a moment, and shows every register of each vCPU that KVM lists, with Arm's
    names and fields. --backtrace, --translate and --page-tables pause it too; the last two use vCPU
    0 without --vcpu.
    -s sends BREAK and the key to the guest's serial console.
    """
    if nmi is not None:
        raise UsageError("--nmi: KVM has no NMI to send to an arm64 guest")
    asked = (dump, devices, page_tables, backtrace, translate is not None, sysrq is not None)
    if sum(asked) != 1:
        raise UsageError(
            "give one of -d (registers), --devices, --backtrace, --translate ADDR, --page-tables "
            "and -s KEY (sysrq)"
        )
    if sysrq is not None:
        if len(sysrq) != 1 or not sysrq.isascii():
            raise UsageError(
                f"--sysrq {sysrq}: needs one key", hint="-s h makes Linux list the keys"
            )
        return send(chosen(name, everything), {"do": "sysrq", "key": sysrq}, as_json, "sent")
    request: Message = {"do": "registers", "vcpu": vcpu, "whole": whole}
    if devices:
        request = {"do": "devices"}
    names = None if symbols is None else Symbols.open(symbols)
    if backtrace:
        request = {"do": "backtrace", "vcpu": vcpu}
    if translate is not None:
        request = {"do": "translate", "vcpu": vcpu or 0, "address": translate}
    found = chosen(name, everything)
    if page_tables:
        replies = [_page_tables(vm, vcpu or 0) for vm in found.vms]
    else:
        replies = ask_all(found.vms, request)
    if kallsyms and names is None:
        replies = [_with_names(*pair) for pair in zip(found.vms, replies, strict=True)]
    return report(found, replies, as_json, partial(_lines, part=part, names=names))


def _lines(reply: Message, part: str, names: Symbols | None) -> Iterator[str]:
    """Yield a VM's devices, addresses, or the registers and exits to pyvmm of each vCPU."""
    yield f"{reply['name']}:"
    if "ranges" in reply:
        yield from table_lines(reply)
        return
    if "virtual" in reply:
        yield from translation_lines(reply)
        return
    if "backtraces" in reply:
        codes = reply.get("code", {})
        yield from backtrace_lines(reply["backtraces"], codes, names or known(reply))
        return
    if "devices" in reply:
        yield from show_devices(reply["devices"])
        return
    named = names or known(reply)
    for registers in reply["vcpus"]:
        yield from show_registers(registers, part)
        if named is not None and (name := named.name(int(registers["registers"]["PC"], 16))):
            yield f"  PC is in {name}"
        causes = ", ".join(f"{cause} {count}" for cause, count in registers["exits"].items())
        yield f"  exits    {causes or 'none'}"


def _with_names(vm: Vm, reply: Message) -> Message:
    """Return a reply with the names of its addresses, from the guest's memory."""
    if not reply["ok"]:
        return reply
    wanted = readable(reply, addresses_in)
    found = vm.ask({"do": "names", "addresses": wanted})
    return {**reply, "names": found["names"]} if found["ok"] else found


def _page_tables(vm: Vm, vcpu: int) -> Message:
    return whole_tables(lambda start: vm.ask({"do": "page-tables", "vcpu": vcpu, "from": start}))


def show_devices(devices: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield lines about each device, from VirtioDevice.describe()."""
    if not devices:
        yield "no virtio devices"
    for device in devices:
        yield f"{device['region']} {device['device']} {device['backing']}".rstrip()
        interface = " (legacy)" if device["legacy"] else ""
        yield f"  status   {' '.join(device['status']) or 'reset'}{interface}"
        yield f"  features {' '.join(device['features']) or 'none'}"
        yield from _pairs("config", device["config"])
        yield from _pairs("counts", device["counts"])
        for queue in device["queues"]:
            yield f"  queue    {_queue(queue)}"


def _pairs(title: str, values: dict[str, int]) -> Iterator[str]:
    if values:
        yield f"  {title:8} {' '.join(f'{name}={value}' for name, value in values.items())}"


def _queue(queue: dict[str, Any]) -> str:
    if not queue["ready"]:
        return f"{queue['name']}: not in use, at most {queue['max_size']} entries"
    return (
        f"{queue['name']}: {queue['size']} entries, descriptors {queue['desc']}, "
        f"available {queue['driver']} at {queue['avail_idx']}, taken to {queue['last_avail']}, "
        f"used {queue['device']} at {queue['used_idx']}"
    )
