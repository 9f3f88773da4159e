"""The virtio devices of a machine: a table makes them from the Config, KVM connects them.

Interrupts travel by irqfds, doorbells by ioeventfds.

To add a kind of device: its file in pyvmm/devices/virtio/, its class in config.py, its option in
commands/_deviceopts.py and _fields.py, and a row in MAKERS.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pyvmm import layout
from pyvmm.base.loop import Loop
from pyvmm.base.records import Record
from pyvmm.config import Balloon, DeviceConfig, Disk, Hotplug, Pmem, Rng, Share, Vsock
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.served import ServedDevice
from pyvmm.errors import HostError, VmmError
from pyvmm.kvm import uapi
from pyvmm.kvm.vm import Vm
from pyvmm.layout import Region
from pyvmm.machine.plan import Plan
from pyvmm.machine.slots import MemorySlots
from pyvmm.memory.map import MemoryMap


class Site(Record, kw_only=True):
    """The resources a device is made from; ``undo`` gets the cleanup of each.

    ``memory`` is the memory that devices may address; a device may add its own memory to it.
    ``window`` is the address range above RAM that its DeviceConfig requested.
    """

    memory: MemoryMap
    slots: MemorySlots
    window: Region
    undo: ExitStack
    log: Callable[[str], None]
    fail: Callable[[VmmError], None]


# Imported lazily: most machines have few of these devices.


def _make_mem(asked: Hotplug, site: Site) -> VirtioDevice:
    """Make memory that the guest can plug, at addresses of its own."""
    from pyvmm.devices.virtio.mem import VirtioMem
    from pyvmm.machine.slots import PluggedSlots
    from pyvmm.memory.map import PluggableMemory

    blocks = site.undo.enter_context(PluggableMemory(site.window.base, asked.size, asked.block))
    shown = PluggedSlots(blocks, site.slots)
    site.memory.add(blocks)
    site.slots.save(site.window.name, blocks.backing)
    return VirtioMem(site.memory, site.log, blocks, shown.show)


def _make_disk(asked: Disk, site: Site) -> VirtioDevice:
    """Make a disk; its file is closed with the machine."""
    from pyvmm.devices.diskfile import DiskFile
    from pyvmm.devices.virtio.blk import VirtioBlk

    disk = DiskFile(
        asked.path, option="`devices.disk`", read_only=asked.read_only, direct=asked.direct
    )
    site.undo.callback(disk.close)
    return VirtioBlk(site.memory, disk, serial_of(asked.path), site.log)


def _make_pmem(asked: Pmem, site: Site) -> VirtioDevice:
    """Map a file as guest memory; devices may write to it, unless it is read-only."""
    from pyvmm.devices.diskfile import DiskFile
    from pyvmm.devices.virtio.pmem import VirtioPmem
    from pyvmm.memory.file import FileMemory

    window = site.window
    disk = DiskFile(asked.path, option="`devices.pmem`", read_only=asked.read_only)
    site.undo.callback(disk.close)
    if disk.size != window.size:
        raise HostError(f"{asked}: the file's size changed while it was opened")
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
    """Return a disk's name in /dev/disk/by-id, which depends on its path alone."""
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


def _make_vsock(asked: Vsock, site: Site) -> VirtioDevice:
    """Take the CID, which the kernel keeps for this machine."""
    from pyvmm.devices.virtio.vsock import VhostVsock, VirtioVsock

    (node,) = asked.nodes
    backend = VhostVsock(asked.cid, node)
    site.undo.callback(backend.close)
    return VirtioVsock(site.memory, site.log, backend, asked.cid)


def _make_share(asked: Share, site: Site) -> VirtioDevice:
    """Start the daemon that serves the directory."""
    from pyvmm.devices.vhost.user import VhostUser
    from pyvmm.devices.virtio.fs import VirtioFs
    from pyvmm.machine.daemons import virtiofsd

    daemon = virtiofsd(asked)
    site.undo.callback(daemon.close)
    backend = VhostUser(daemon.connection, "virtiofsd")
    return VirtioFs(site.memory, site.log, backend, asked.tag, site.fail)


# The function that makes each kind of device from its DeviceConfig
MAKERS: dict[type[DeviceConfig], Callable[[Any, Site], VirtioDevice]] = {
    Balloon: _make_balloon,
    Hotplug: _make_mem,
    Disk: _make_disk,
    Pmem: _make_pmem,
    Rng: _make_rng,
    Vsock: _make_vsock,
    Share: _make_share,
}


def make_devices(
    asked: Sequence[DeviceConfig],
    decided: Plan,
    *,
    memory: MemoryMap,
    slots: MemorySlots,
    undo: ExitStack,
    log: Callable[[str], None],
    fail: Callable[[VmmError], None],
) -> list[VirtioDevice]:
    """Make the devices, in order.

    Raises: HostError, if this machine cannot provide what one of them needs.
    """
    return [
        MAKERS[type(one)](
            one,
            Site(memory=memory, slots=slots, window=window, undo=undo, log=log, fail=fail),
        )
        for one, window in zip(asked, decided.windows, strict=True)
    ]


class IrqFd:
    """An interrupt that a call, or a write to its eventfd, pulses."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __call__(self) -> None:
        """Pulse the interrupt."""
        os.eventfd_write(self.fd, 1)


def plug_in(
    devices: Iterable[VirtioDevice], vm: Vm, undo: ExitStack, transport: str
) -> list[VirtioMmio]:
    """Put the devices into the slots of the map, with an irqfd for the interrupt of each.

    ``transport`` is mmio or mmio-legacy. ``undo`` gets the cleanup. The caller must have added the
    unmapping of guest RAM to ``undo`` before.
    """
    transports = []
    for slot, device in enumerate(devices):
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        undo.callback(os.close, fd)
        number = layout.virtio(slot).spi
        assert number is not None
        vm.irqfd(fd, number)
        device.call_fd = fd
        undo.callback(device.stop)  # the device holds views of guest RAM
        transports.append(VirtioMmio(device, IrqFd(fd), legacy=transport == "mmio-legacy"))
    return transports


class Doorbells:
    """The delivery of doorbells (writes to QueueNotify) without an exit of the ringing vCPU.

    A loop serves them, or the threads of a device that has its own. When delivery is off, and for
    queues served by exits, QueueNotify is an ordinary register.
    """

    def __init__(self, vm: Vm, slots: Sequence[VirtioMmio], loop: Loop) -> None:
        self._vm = vm
        self._loop = loop
        self._undo = ExitStack()
        for slot, transport in enumerate(slots):
            address = layout.virtio(slot).base + VirtioMmio.QueueNotify.offset
            device = transport.device
            for queue, spec in enumerate(device.queue_specs):
                doorbell = device.doorbell_fd(queue)
                if doorbell is not None:
                    self._connect(self._own(doorbell), address, queue)
                elif not spec.by_exit:
                    self._watch(transport, address, queue)
            if isinstance(device, ServedDevice):
                device.listen()
            for watched, handler in device.watched().items():
                fd = self._own(watched)
                loop.watch(fd, handler)
                self._undo.callback(loop.unwatch, fd)

    def stop(self) -> None:
        """Stop delivering; idempotent."""
        self._undo.close()

    def _own(self, fd: int) -> int:
        """Return a copy of a descriptor, which its device may close."""
        copy = os.dup(fd)
        self._undo.callback(os.close, copy)
        return copy

    def _watch(self, transport: VirtioMmio, address: int, queue: int) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._undo.callback(os.close, fd)
        self._connect(fd, address, queue)

        def ring() -> None:
            os.eventfd_read(fd)
            transport.kick(queue)

        self._loop.watch(fd, ring)
        self._undo.callback(self._loop.unwatch, fd)

    def _connect(self, fd: int, address: int, queue: int) -> None:
        """Have KVM signal an eventfd when the guest rings that queue's doorbell."""
        assign = functools.partial(self._vm.ioeventfd, fd, address, 4, datamatch=queue)
        assign()
        self._undo.callback(assign, flags=uapi.IOEVENTFD_FLAG_DEASSIGN)
