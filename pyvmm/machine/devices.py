"""The virtio devices of a machine: what a Config asks for becomes devices, by one table.

To add a kind of device: its file in pyvmm/devices/virtio/, its class in deviceconfig.py, its
option in commands/_deviceopts.py, and a row here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pyvmm.base.records import Record
from pyvmm.config import Balloon, DeviceConfig, Disk, Hotplug, Pmem, Rng
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import HostError
from pyvmm.layout import Region
from pyvmm.machine.plan import Plan
from pyvmm.machine.slots import MemorySlots
from pyvmm.memory.map import MemoryMap


class Site(Record, kw_only=True):
    """What a device may be made of; ``undo`` gets the way back of what its maker opens.

    ``memory`` is what devices may address, to which a device may add. ``window`` is where the
    addresses above RAM are that its DeviceConfig asked for.
    """

    memory: MemoryMap
    slots: MemorySlots
    window: Region
    undo: ExitStack
    log: Callable[[str], None]


# Each kind's modules are imported when there is one: most machines have few of them.


def _make_mem(asked: Hotplug, site: Site) -> VirtioDevice:
    """Room for memory, with its own addresses."""
    from pyvmm.devices.virtio.mem import VirtioMem
    from pyvmm.machine.hotplug import PluggedSlots
    from pyvmm.memory.map import PluggableMemory

    blocks = site.undo.enter_context(PluggableMemory(site.window.base, asked.size, asked.block))
    shown = PluggedSlots(blocks, site.slots)
    site.memory.add(blocks)
    site.slots.keep(site.window.name, blocks.backing)
    return VirtioMem(site.memory, site.log, blocks, shown.show)


def _make_disk(asked: Disk, site: Site) -> VirtioDevice:
    """A disk, whose file is closed with the machine."""
    from pyvmm.devices.diskfile import DiskFile
    from pyvmm.devices.virtio.blk import VirtioBlk

    disk = DiskFile(asked.path, option="-d", read_only=asked.read_only, direct=asked.direct)
    site.undo.callback(disk.close)
    return VirtioBlk(site.memory, disk, serial_of(asked.path), site.log)


def _make_pmem(asked: Pmem, site: Site) -> VirtioDevice:
    """A file as memory; what the VMM does for the guest may go there, unless it is read-only."""
    from pyvmm.devices.diskfile import DiskFile
    from pyvmm.devices.virtio.pmem import VirtioPmem
    from pyvmm.memory.file import FileMemory

    window = site.window
    disk = DiskFile(asked.path, option="--pmem", read_only=asked.read_only)
    site.undo.callback(disk.close)
    if disk.size != window.size:
        raise HostError(f"{asked}: its size changes while it is opened")
    content = site.undo.enter_context(
        FileMemory(disk.fd, window.base, window.size, read_only=asked.read_only)
    )
    site.slots.add(
        "pmem", window.base, window.size, content.host_address, read_only=asked.read_only
    )
    if not asked.read_only:
        site.memory.add(content)
    return VirtioPmem(site.memory, disk, content, site.log)


def serial_of(path: Path) -> bytes:
    """What a disk is called in /dev/disk/by-id: the same for the same path, whatever its inode."""
    import hashlib

    from pyvmm.devices.virtio.blk import ID_BYTES

    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    return f"pyvmm{digest[: ID_BYTES - 5]}".encode()


def _make_balloon(asked: Balloon, site: Site) -> VirtioDevice:
    from pyvmm.devices.virtio.balloon import VirtioBalloon

    return VirtioBalloon(site.memory, site.log)


def _make_rng(asked: Rng, site: Site) -> VirtioDevice:
    from pyvmm.devices.virtio.rng import VirtioRng

    return VirtioRng(site.memory, site.log)


# How each kind of device is made: of its DeviceConfig, at a Site.
MAKERS: dict[type[DeviceConfig], Callable[[Any, Site], VirtioDevice]] = {
    Balloon: _make_balloon,
    Hotplug: _make_mem,
    Disk: _make_disk,
    Pmem: _make_pmem,
    Rng: _make_rng,
}


def make_devices(
    asked: Sequence[DeviceConfig],
    decided: Plan,
    *,
    memory: MemoryMap,
    slots: MemorySlots,
    undo: ExitStack,
    log: Callable[[str], None],
) -> list[VirtioDevice]:
    """Make the devices, in order.

    Raises: HostError, for what this machine cannot give one of them.
    """
    return [
        MAKERS[type(one)](one, Site(memory=memory, slots=slots, window=window, undo=undo, log=log))
        for one, window in zip(asked, decided.windows, strict=True)
    ]
