"""The memory of running VMs as text, and the wait until a guest has changed it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import click

from pyvmm.base.units import show_size
from pyvmm.commands.vms._running import Vm, readable
from pyvmm.control.wire import Message, failure
from pyvmm.layout import MIB

POLL_S = 0.2  # between two requests while waiting for a guest

wait_option = click.option(
    "--wait", type=click.FloatRange(min=0), metavar="SECONDS",
    help="Wait for the guest to finish; exit with 1 if it takes more than SECONDS.",
)  # fmt: skip


def ask_and_wait(
    vm: Vm, request: Message, missing: Callable[[Message], str], wait_s: float | None
) -> Message:
    """Send a request, and ask again until nothing is ``missing`` or time is up.

    ``missing`` returns what a reply lacks, as text. When time is up, the reply is a failure with
    that text.
    """
    reply = vm.ask(request)
    deadline = time.monotonic() + (wait_s or 0)
    while wait_s is not None and reply["ok"] and (what := readable(reply, missing)):
        left = deadline - time.monotonic()
        if left <= 0:
            return {**reply, **failure(f"after {wait_s:g} s {what}", readable(reply, _why_not))}
        time.sleep(min(POLL_S, left))
        reply = vm.ask({"do": request["do"]})
    return reply


def missing_of_balloon(reply: Message) -> str:
    """Return what a balloon still lacks."""
    balloon = reply["balloon"]
    if balloon["hinting"]:
        return "the guest has not reported its free memory"
    if balloon["actual_bytes"] == balloon["target_bytes"]:
        return ""
    return f"the balloon has {mib(balloon['actual_bytes'])}, not {mib(balloon['target_bytes'])}"


def missing_of_memory(reply: Message) -> str:
    """Return what the guest has not plugged or unplugged yet."""
    hotplug = reply["hotplug"]
    if hotplug is None or hotplug["plugged_bytes"] == hotplug["requested_bytes"]:
        return ""
    return f"{mib(hotplug['plugged_bytes'])} are plugged, not {mib(hotplug['requested_bytes'])}"


def balloon_line(reply: Message) -> str:
    """Describe the balloon's size."""
    balloon = reply["balloon"]
    actual = balloon["actual_bytes"]
    return f"balloon {mib(actual)}{_pending(balloon, actual, balloon['target_bytes'])}"


def memory_line(reply: Message) -> str:
    """Describe the memory that is plugged."""
    hotplug = reply["hotplug"]
    if hotplug is None:
        return f"memory {show_size(reply['memory_bytes'])}, no room for more"
    plugged, requested = hotplug["plugged_bytes"], hotplug["requested_bytes"]
    return (
        f"memory {mib(hotplug['ram_bytes'] + plugged)}: {mib(hotplug['ram_bytes'])} and "
        f"{mib(plugged)} of {mib(hotplug['most_bytes'])} plugged"
        f"{_pending(hotplug, plugged, requested)}"
    )


def _pending(device: Message, now: int, requested: int) -> str:
    """Describe what the guest has not done yet."""
    asked = "" if now == requested else f", asked for {mib(requested)}"
    return asked + ("" if device["has_driver"] else "; the guest has no driver for it (yet)")


def statistics_lines(reply: Message) -> Iterator[str]:
    """Yield the guest's statistics of its memory."""
    found = reply.get("guest_memory")
    if found is None:
        return
    values = {name: value for name, value in found.items() if name != "age_s"}
    yield f"  reported by the guest {found['age_s']:.1f} s ago"
    for name, value in values.items():
        shown = mib(value) if name.endswith("_bytes") else str(value)
        yield f"    {name.removesuffix('_bytes').replace('_', ' '):20}  {shown:>12}"


def mib(size: int) -> str:
    """Write a size in MiB."""
    return f"{size / MIB:.1f}".removesuffix(".0") + " MiB"


def _why_not(reply: Message) -> str:
    """Return a hint: what prevents the guest from finishing."""
    devices = (reply.get("balloon"), reply.get("hotplug"))
    if reply["state"] == "paused":
        return "it is paused"
    if not all(device["has_driver"] for device in devices if device):
        return "the guest has no driver for it: a Linux guest needs virtio_balloon or virtio_mem"
    return "a guest gives up no memory that it uses; `pyvmm stat -m` shows its memory"
