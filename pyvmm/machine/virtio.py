"""virtio devices on a machine: their interrupts by irqfds, their kicks by ioeventfds."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import ExitStack

from pyvmm import layout
from pyvmm.base.loop import Loop
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.served import ServedDevice
from pyvmm.kvm.uapi import IoeventfdFlag
from pyvmm.kvm.vm import Vm


def plug_in(device: VirtioDevice, slot: int, vm: Vm, undo: ExitStack, transport: str) -> VirtioMmio:
    """Put a device into a slot of the map, with an irqfd for its interrupt.

    ``transport`` is mmio or mmio-legacy. ``undo`` gets the way back: whoever unmaps guest RAM
    must have put that there before.
    """
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    undo.callback(os.close, fd)
    number = layout.virtio(slot).spi
    assert number is not None
    vm.irqfd(fd, number)
    undo.callback(device.stop)  # it holds views of guest RAM
    pulse = functools.partial(os.eventfd_write, fd, 1)
    return VirtioMmio(device, pulse, legacy=transport == "mmio-legacy")


class Kicks:
    """Has kicks of devices' queues carried without an exit of the vCPU that kicks.

    By a loop, or by the threads of a device that has some.

    Before and after, and for queues served by exits, QueueNotify is a register like any other.
    """

    def __init__(self, vm: Vm, slots: Sequence[VirtioMmio], loop: Loop) -> None:
        self._vm = vm
        self._loop = loop
        self._undo = ExitStack()
        for slot, transport in enumerate(slots):
            address = layout.virtio(slot).base + VirtioMmio.QueueNotify.offset
            device = transport.device
            for queue, spec in enumerate(device.queue_specs):
                if isinstance(device, ServedDevice):
                    fd = os.dup(device.kick_fd)  # the device closes its own at its end
                    self._undo.callback(os.close, fd)
                    self._connect(fd, address, queue)
                elif not spec.by_exit:
                    self._carry(transport, address, queue)
            if isinstance(device, ServedDevice):
                device.listen()

    def stop(self) -> None:
        """Leave the loop alone from now on; idempotent."""
        self._undo.close()

    def _carry(self, transport: VirtioMmio, address: int, queue: int) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._undo.callback(os.close, fd)
        self._connect(fd, address, queue)

        def kicked() -> None:
            os.eventfd_read(fd)
            transport.kick(queue)

        self._loop.watch(fd, kicked)
        self._undo.callback(self._loop.unwatch, fd)

    def _connect(self, fd: int, address: int, queue: int) -> None:
        """Have KVM signal an eventfd when the guest kicks that queue."""
        kicks = functools.partial(self._vm.ioeventfd, fd, address, 4, datamatch=queue)
        kicks()
        self._undo.callback(kicks, flags=IoeventfdFlag.DEASSIGN)
