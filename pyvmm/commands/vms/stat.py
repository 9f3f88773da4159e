"""``pyvmm stat``: VMs' exits from KVM_RUN by reason, and their memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

import click

from pyvmm.base.output import printable
from pyvmm.base.units import show_size
from pyvmm.commands.vms._guestmemory import balloon_line, memory_line, statistics_lines
from pyvmm.commands.vms._running import (
    Vm,
    ask_all,
    chosen,
    exit_code,
    readable,
    report,
    vm_options,
)
from pyvmm.control.wire import Message
from pyvmm.layout import MIB


@click.command()
@click.option("-m", "--memory", is_flag=True, help="Show only guest memory.")
@click.option("--once", is_flag=True, help="Print once, on a terminal too.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, metavar="SECONDS",
    help="Time between two updates on a terminal.",
)  # fmt: skip
@vm_options
def stat(
    name: str | None, everything: bool, as_json: bool, memory: bool, once: bool, interval: float
) -> int:
    """Show VMs' exits, by reason and device.

    Also show the memory they use; a guest with a balloon reports details.  Exits to pyvmm are
    counted by device and direction.  KVM's own statistics and the counts of virtio devices follow.
    On a terminal the display is live, with rates, until Ctrl-C or the VM's end. Elsewhere, with
    --json and with --once, it is printed once.
    """
    found = chosen(name, everything)
    if as_json or once or not sys.stdout.isatty():
        replies = ask_all(found.vms, {"do": "stat"})
        return report(found, replies, as_json, lambda reply: lines(reply, None, memory))
    _watch(found.vms, memory, interval)
    return exit_code(found.failures)


def _watch(vms: list[Vm], memory: bool, interval_s: float) -> None:
    """Show the counts again and again, until all of the VMs have ended."""
    from rich.live import Live
    from rich.text import Text

    watched: list[tuple[Vm, Message | None]] = [(vm, None) for vm in vms]
    with Live(auto_refresh=False) as live:
        while looked := _look(watched):
            shown = [line for _, before, now in looked for line in _lines(now, before, memory)]
            live.update(Text("\n".join(shown)), refresh=True)
            watched = [(vm, now) for vm, _, now in looked]
            time.sleep(interval_s)


def _lines(now: Message, before: Message | None, memory: bool) -> list[str]:
    """Return the lines about one VM, for a terminal.  Raises: HostError."""
    return [printable(line) for line in readable(now, lambda now: list(lines(now, before, memory)))]


def _look(
    watched: Sequence[tuple[Vm, Message | None]],
) -> list[tuple[Vm, Message | None, Message]]:
    """Return the previous and the current reply of each VM that still runs."""
    replies = ask_all([vm for vm, _ in watched], {"do": "stat"})
    pairs = zip(watched, replies, strict=True)
    return [(vm, before, now) for (vm, before), now in pairs if now["ok"]]


def lines(reply: Message, before: Message | None, memory: bool = False) -> Iterator[str]:
    """Yield the lines about one VM; rates are since its reply ``before``."""
    resident = reply["memory_resident_bytes"] / MIB
    size = show_size(reply["memory_bytes"])
    yield (
        f"{reply['name']}  {reply['state']}, up {reply['uptime_s']:.1f} s, "
        f"{reply['vcpus']} vCPUs, {size} of memory, {resident:.1f} MiB of it in use"
    )
    if reply.get("balloon") is not None:
        yield f"  {balloon_line(reply)}"
    if reply.get("hotplug") is not None:
        yield f"  {memory_line(reply)}"
    yield from statistics_lines(reply)
    if memory:
        return
    yield from _table("exits to pyvmm", reply, before, "exits")
    yield from _table("bytes sent without a VM exit", reply, before, "sent_without_exit")
    yield from _table("counted by KVM", reply, before, "kvm")
    yield from _devices(reply, before)


def _table(title: str, reply: Message, before: Message | None, key: str) -> Iterator[str]:
    """Yield counts that are not zero, the largest first; with rates after an earlier reply."""
    counts = {
        cause: count
        for cause, count in reply.get(key, {}).items()  # an older VM lacks some
        if count and not cause.endswith("_ns")  # times are in --json only
    }
    if not counts:
        return
    width = max(len(title), *map(len, counts))
    total = sum(counts.values()) if key == "exits" else ""  # one of KVM's counts is the total
    yield f"  {title:{width}}  {total:>12}".rstrip()
    earlier = {} if before is None else before[key]
    for cause, count in sorted(counts.items(), key=lambda item: -item[1]):
        rate = _rate(count - earlier.get(cause, 0), reply, before)
        yield f"    {cause:{width}}  {count:>10}{rate}"


def _devices(reply: Message, before: Message | None) -> Iterator[str]:
    """Yield the counts of each virtio device."""
    for slot, device in enumerate(reply["devices"]):
        earlier = {} if before is None else before["devices"][slot]["counts"]
        yield f"  {device['region']} {device['device']} {device['backing']}".rstrip()
        for name, count in device["counts"].items():
            rate = _rate(count - earlier.get(name, 0), reply, before)
            yield f"    {name.replace('_', ' '):16}  {count:>14}{rate}"


def _rate(more: int, reply: Message, before: Message | None) -> str:
    """Write the increase per second since the reply ``before``."""
    if before is None or reply["uptime_s"] <= before["uptime_s"]:
        return ""
    passed_s = reply["uptime_s"] - before["uptime_s"]
    return f"  {more / passed_s:>10.0f}/s"
