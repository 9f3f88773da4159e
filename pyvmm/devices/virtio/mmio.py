"""The virtio-mmio transport, modern (version 2) and legacy (version 1).

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, 4.2.2 (registers) and 4.2.4 (legacy interface);
linux/virtio_mmio.h. Every event pulses the edge-triggered interrupt, as under lkvm.

A legacy device's fields and rings have the guest's byte order. Guests of pyvmm are little-endian,
as the modern interface is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from pyvmm.devices.device import Device, Reg, Writer
from pyvmm.devices.state import StateError, section
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.queue import DESC_AREA, DRIVER_AREA, QueueError, Virtqueue

MAGIC = int.from_bytes(b"virt", "little")
VENDOR = int.from_bytes(b"pyvm", "little")
CONFIG = 0x100  # offset of the configuration space
NO_REGION = 0xFFFF_FFFF  # length and base of an absent shared memory region: 64 ones

# Register banks: the registers of one version only
MODERN, LEGACY = 1, 2
VERSIONS = {MODERN: 2, LEGACY: 1}


def _half(area: str, shift: int) -> Writer:
    """Return the handler of one half of an address of the selected queue."""

    def write(transport: VirtioMmio, value: int) -> None:
        queue = transport.queue_to_place()
        if queue is not None:
            other = 0xFFFF_FFFF << (32 - shift)
            setattr(queue, area, getattr(queue, area) & other | value << shift)

    return write


class InterruptBits(Protocol):
    """The bits of InterruptStatus. The device sets them, the driver clears them, atomically."""

    def get(self) -> int:
        """Return the bits that are set."""

    def set(self, bits: int) -> None:
        """Set more bits."""

    def clear(self, bits: int) -> None:
        """Clear bits."""

    def always_set(self, bits: int) -> None:
        """Let each read have these bits, whatever is cleared."""


class LockedInterruptBits:
    """The bits of InterruptStatus, kept in Python; every user holds the transport's lock."""

    def __init__(self) -> None:
        self._bits = self._always = 0

    def get(self) -> int:
        """Return the bits that are set."""
        return self._bits | self._always

    def set(self, bits: int) -> None:
        """Set more bits."""
        self._bits |= bits

    def clear(self, bits: int) -> None:
        """Clear bits."""
        self._bits &= ~bits

    def always_set(self, bits: int) -> None:
        """Let each read have these bits, whatever is cleared."""
        self._always = bits


class VirtioMmio(Device):
    """The registers of a virtio device; ``irq`` pulses its interrupt.

    Kicks are writes of QueueNotify, or calls of `kick` after an ioeventfd's signal. C may
    complete accesses to InterruptStatus and InterruptACK: see `use_interrupt_bits`.
    """

    node_name = "virtio"
    compatible = ("virtio,mmio",)
    properties: ClassVar = {"dma-coherent": None}
    edge_triggered = True

    MagicValue = Reg(0x000, "'virt'", ro=True, reset=MAGIC)
    Version = Reg(0x004, "2, or 1 for the legacy interface", ro=True)
    DeviceID = Reg(0x008, "what kind of device", ro=True)
    VendorID = Reg(0x00C, "'pyvm'", ro=True, reset=VENDOR)
    DeviceFeatures = Reg(0x010, "32 bits of the offered features", ro=True)
    DeviceFeaturesSel = Reg(0x014, "which 32 bits", wo=True)
    DriverFeatures = Reg(0x020, "32 bits of the accepted features", wo=True)
    DriverFeaturesSel = Reg(0x024, "which 32 bits", wo=True)
    GuestPageSize = Reg(0x028, "the unit of QueuePFN", wo=True, bank=LEGACY)
    QueueSel = Reg(0x030, "index of the selected queue", wo=True)
    QueueNumMax = Reg(0x034, "the largest size; 0: no such queue", ro=True)
    QueueNum = Reg(0x038, "the size the driver chose", wo=True)
    QueueAlign = Reg(0x03C, "alignment of the used ring", wo=True, bank=LEGACY)
    QueuePFN = Reg(0x040, "page number of the queue; 0: none", bank=LEGACY)
    QueueReady = Reg(0x044, "1: the queue may be used", bank=MODERN)
    QueueNotify = Reg(0x050, "the index of a queue with new buffers", wo=True)
    InterruptStatus = Reg(0x060, "0 used buffers, 1 configuration change", ro=True)
    InterruptACK = Reg(0x064, "clears bits of InterruptStatus", wo=True)
    Status = Reg(0x070, "the device status; writing 0 resets")
    QueueDescLow = Reg(0x080, "descriptor table, address bits 31:0", wo=True, bank=MODERN)
    QueueDescHigh = Reg(0x084, "descriptor table, address bits 63:32", wo=True, bank=MODERN)
    QueueDriverLow = Reg(0x090, "available ring, address bits 31:0", wo=True, bank=MODERN)
    QueueDriverHigh = Reg(0x094, "available ring, address bits 63:32", wo=True, bank=MODERN)
    QueueDeviceLow = Reg(0x0A0, "used ring, address bits 31:0", wo=True, bank=MODERN)
    QueueDeviceHigh = Reg(0x0A4, "used ring, address bits 63:32", wo=True, bank=MODERN)
    SHMSel = Reg(0x0AC, "which shared memory region", wo=True, bank=MODERN)
    SHMLenLow = Reg(0x0B0, "its length, bits 31:0", ro=True, reset=NO_REGION, bank=MODERN)
    SHMLenHigh = Reg(0x0B4, "its length, bits 63:32", ro=True, reset=NO_REGION, bank=MODERN)
    SHMBaseLow = Reg(0x0B8, "its address, bits 31:0", ro=True, reset=NO_REGION, bank=MODERN)
    SHMBaseHigh = Reg(0x0BC, "its address, bits 63:32", ro=True, reset=NO_REGION, bank=MODERN)
    ConfigGeneration = Reg(0x0FC, "changes with the configuration", ro=True, bank=MODERN)

    QueueDescLow.write(_half("desc", 0))
    QueueDescHigh.write(_half("desc", 32))
    QueueDriverLow.write(_half("driver", 0))
    QueueDriverHigh.write(_half("driver", 32))
    QueueDeviceLow.write(_half("device", 0))
    QueueDeviceHigh.write(_half("device", 32))

    def __init__(
        self, device: VirtioDevice, irq: Callable[[], None], *, legacy: bool = False
    ) -> None:
        super().__init__()
        self.lock = device.lock
        self.device = device
        self.irq = irq
        # InterruptStatus is a copy for snapshots.
        self._reasons: InterruptBits = LockedInterruptBits()
        self._reasons.always_set(device.always_set)
        bank = LEGACY if legacy else MODERN
        self.select_bank(bank)
        self.Version = VERSIONS[bank]
        self.DeviceID = device.device_id
        device.legacy = legacy
        device.interrupt = self._interrupt

    def mmio_read(self, offset: int, length: int) -> int:
        """Return a guest's read of a register or of the device's configuration."""
        if offset < CONFIG:
            return super().mmio_read(offset, length)
        with self.lock:
            value = self.device.read_config(offset - CONFIG, length)
        self.device.run_deferred()
        return value

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        """Handle a guest's write, and complete the work that it causes before returning."""
        if offset < CONFIG:
            super().mmio_write(offset, length, value)
        else:
            with self.lock:
                self.device.write_config(offset - CONFIG, length, value)
        self.device.run_deferred()

    def use_interrupt_bits(self, bits: InterruptBits | None) -> None:
        """Hold InterruptStatus in ``bits``, which C can access; None: only Python accesses it."""
        with self.lock:
            before, self._reasons = self._reasons, bits or LockedInterruptBits()
            self._reasons.set(before.get())
            self._reasons.always_set(self.device.always_set)

    def state(self) -> dict[str, Any]:
        """Return the state of the transport's registers and of the device."""
        self.InterruptStatus = self._reasons.get()
        return {**super().state(), "virtio": self.device.state()}

    def restore(self, state: object, where: str) -> None:
        """Restore the saved state of the transport and of its device."""
        super().restore(state, where)
        self.device.restore(section(state, "virtio", where), f"{where}.virtio")

    def restored(self) -> None:
        """Refuse a snapshot of another device or version."""
        version = next(v for bank, v in VERSIONS.items() if (bank == LEGACY) == self.device.legacy)
        if (self.Version, self.DeviceID) != (version, self.device.device_id):
            raise StateError(
                f"the snapshot has a virtio device {self.DeviceID} of version {self.Version} "
                f"where this machine has a {self.device.name} of version {version}"
            )
        self._set_reasons(self.InterruptStatus)

    def resume(self) -> None:
        """Repeat the interrupts and kicks that were in flight at the save.

        The GIC's saved state lacks interrupts that were signalled by an eventfd, but not delivered.
        So if InterruptStatus is not 0, interrupt the driver again.
        """
        with self.lock:
            if self._reasons.get():
                self.irq()
            self.device.look_into_queues()
        self.device.run_deferred()

    def kick(self, index: int) -> None:
        """Make the device serve a queue; from any thread. Ignore an unknown index."""
        queues = self.device.queues
        if index < len(queues) and queues[index].ready:
            self.device.notify(queues[index])

    @property
    def queue(self) -> Virtqueue | None:
        """The selected queue, if it exists."""
        queues = self.device.queues
        return queues[self.QueueSel] if self.QueueSel < len(queues) else None

    def queue_to_place(self) -> Virtqueue | None:
        """Return the selected queue, to size or place it; the device fails if it is in use."""
        queue = self.queue
        if queue is not None and queue.ready:
            self.device.fail(f"{queue.name} is moved while it is in use")
            return None
        return queue

    @DeviceFeatures.read
    def _(self) -> int:
        return self.device.offered >> 32 * min(self.DeviceFeaturesSel, 2) & 0xFFFF_FFFF

    @DriverFeatures.write
    def _(self, value: int) -> None:
        self.device.write_features(self.DriverFeaturesSel, value)

    @QueueNumMax.read
    def _(self) -> int:
        return self.queue.max_size if self.queue is not None else 0

    @QueueNum.write
    def _(self, value: int) -> None:
        queue = self.queue_to_place()
        if queue is not None:
            queue.size = value

    @QueueReady.read
    def _(self) -> int:
        return int(self.queue is not None and self.queue.ready)

    @QueueReady.write
    def _(self, value: int) -> None:
        queue = self.queue
        if queue is None or bool(value & 1) == queue.ready:
            return
        if queue.ready:
            queue.disable()
        else:
            self._enable(queue)

    @QueuePFN.read
    def _(self) -> int:
        queue = self.queue
        return queue.desc // (self.GuestPageSize or 1) if queue is not None and queue.ready else 0

    @QueuePFN.write
    def _(self, value: int) -> None:
        queue = self.queue if value == 0 else self.queue_to_place()
        if queue is None:
            return
        if value == 0:
            queue.disable()
            return
        align = self.QueueAlign
        for register, unit in (("GuestPageSize", self.GuestPageSize), ("QueueAlign", align)):
            if unit == 0:
                self.device.fail(f"{queue.name} got a QueuePFN, but {register} was never written")
                return
        if align & (align - 1):
            self.device.fail(f"{queue.name} has QueueAlign {align}, which is no power of 2")
            return
        # Source: VIRTIO 1.2, 2.7.2
        queue.desc = value * self.GuestPageSize
        queue.driver = queue.desc + DESC_AREA.size(queue.size)
        queue.device = queue.driver + DRIVER_AREA.size(queue.size) + align - 1 & -align
        self._enable(queue)

    @QueueNotify.write
    def _(self, value: int) -> None:
        self.device.defer(functools.partial(self.kick, value))

    @InterruptStatus.read
    def _(self) -> int:
        return self._reasons.get()

    @InterruptACK.write
    def _(self, value: int) -> None:
        self._reasons.clear(value)

    @Status.read
    def _(self) -> int:
        return self.device.status

    @Status.write
    def _(self, value: int) -> None:
        self.device.write_status(value)
        if value == 0:
            self._set_reasons(0)
            self.QueueSel = 0
            self.DeviceFeaturesSel = self.DriverFeaturesSel = 0

    @ConfigGeneration.read
    def _(self) -> int:
        return self.device.config_generation

    def _enable(self, queue: Virtqueue) -> None:
        try:
            queue.enable()
        except QueueError as error:
            self.device.fail(error.message)

    def _interrupt(self, reasons: int) -> None:
        """Interrupt the guest; with the lock.

        Each call is an edge: a driver may have read its queues, but not yet acknowledged the last
        edge.
        """
        self._reasons.set(reasons)
        self.irq()

    def _set_reasons(self, reasons: int) -> None:
        self._reasons.clear(0xFFFF_FFFF)
        self._reasons.set(reasons)
