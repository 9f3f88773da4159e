"""virtio devices as text, for ``pyvmm debug --devices``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


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
