"""The states of devices in a snapshot, restored into devices that then work.

The input is an object: a state by the device's name.  Guest RAM has the rings of running drivers.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.jsonmutator import mutated as mutate
from fuzz.snapshots import scratch
from pyvmm.devices.state import StateError
from pyvmm.errors import VmmError
from pyvmm.layout import RAM_BASE
from pyvmm.snapshot.format import parse_json
from tests.devices.live import RAM_SIZE, SIZE, LiveDevices

__all__ = ["check", "mutate", "seeds"]

RINGS = RAM_SIZE // 32  # bytes of RAM that the drivers use


@functools.cache
def disk(name: str = "disk") -> Path:
    """Return a file for the disk; one machine at a time uses it."""
    path = scratch() / name
    path.touch()
    with path.open("r+b") as file:
        file.truncate(SIZE)
    return path


@functools.cache
def live() -> tuple[dict[str, Any], bytes]:
    """Return the states of devices in use, and guest RAM."""
    with LiveDevices(disk()) as made:
        made.use()
        return made.states(), made.ram.read(RAM_BASE, RINGS)


def check(data: bytes) -> None:
    """Restore states, let the devices serve their queues, and save; or refuse them."""
    try:
        document = parse_json(data, "the states")
    except VmmError:
        return
    _, rings = live()
    failed: list[object] = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        with LiveDevices(disk()) as made:
            made.ram.write(RAM_BASE, rings)
            names = [name for name in document if name in made.devices]
            try:
                for name in names:
                    made.restore(name, document[name])
            except StateError:
                return
            made.run()
            json.dumps(made.states())
            for name in names:
                made.devices[name].mmio_write(0x70 if name.startswith("virtio") else 1, 4, 0)
        assert disk().stat().st_size == SIZE
        assert not failed, failed
    finally:
        threading.excepthook = before


def seeds() -> Iterator[bytes]:
    """Yield each device's state."""
    for name, state in live()[0].items():
        yield json.dumps({name: state}, separators=(",", ":")).encode()
