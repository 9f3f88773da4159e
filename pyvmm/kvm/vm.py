"""A virtual machine: its memory, its interrupts, and the way to vCPUs and devices."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator
from typing import TypeVar, overload

from pyvmm.base.records import Record
from pyvmm.errors import KvmError
from pyvmm.kvm import ioctls, regs, structs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.device import AttributeFd, Device
from pyvmm.kvm.native import address, native
from pyvmm.kvm.structs import words
from pyvmm.kvm.uapi import (
    CREATE_DEVICE_TEST,
    DeviceType,
    FeatureId,
    IoeventfdFlag,
    IrqfdFlag,
    IrqField,
    IrqRouting,
    IrqType,
    MsiFlag,
)
from pyvmm.kvm.vcpu import Vcpu

_Vcpu = TypeVar("_Vcpu", bound=Vcpu)

_FIRST_SPI = 32  # INTIDs.  Source: GICv3 architecture (Arm IHI 0069), table 2-1
_FIRST_PPI = 16
_BITMAP_WORD = 64  # KVM's dirty bitmaps are arrays of 64-bit words


class IrqchipRoute(Record):
    """A GSI that drives a shared interrupt: ``pin`` n is SPI n."""

    gsi: int
    pin: int


class MsiRoute(Record):
    """A GSI that sends a message: ``devid`` names the device where an ITS needs one."""

    gsi: int
    address: int
    data: int
    devid: int | None = None


def spi(number: int) -> int:
    """The KVM_IRQ_LINE number of shared interrupt ``number`` (0 is INTID 32)."""
    return IrqType.SPI << IrqField.TYPE_SHIFT | _FIRST_SPI + number


def ppi(vcpu: int, number: int) -> int:
    """The KVM_IRQ_LINE number of a vCPU's private interrupt ``number`` (0 is INTID 16)."""
    return (
        (vcpu >> 8 & IrqField.VCPU2_MASK) << IrqField.VCPU2_SHIFT
        | IrqType.PPI << IrqField.TYPE_SHIFT
        | (vcpu & IrqField.VCPU_MASK) << IrqField.VCPU_SHIFT
        | _FIRST_PPI + number
    )


def dirty_pages(bitmap: bytes) -> Iterator[int]:
    """The numbers of the pages whose bits are set."""
    bits = int.from_bytes(bitmap, "little")
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


class Vm(AttributeFd):
    """A virtual machine, made by System.create_vm."""

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd)
        self.vcpu_mmap_size = vcpu_mmap_size

    def check_extension(self, cap: int) -> int:
        """What KVM answers about a capability for this VM."""
        return ioctls.CHECK_EXTENSION(self.fd, cap, lambda: Cap.name_of(cap))

    def has(self, cap: int) -> bool:
        """Whether this VM has that capability."""
        return self.check_extension(cap) > 0

    def enable_cap(self, cap: int, *args: int) -> None:
        """Switch a capability on, with up to four arguments of its own."""
        ioctls.ENABLE_CAP.write(self.fd, cap=Cap.of(cap), args=args)

    # Memory

    def set_user_memory_region(
        self,
        slot: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        flags: int = 0,
    ) -> None:
        """Put memory of this process at a guest physical address; size 0 removes the slot.

        The memory must stay mapped as long as the slot exists.  ``flags`` are MemoryFlag bits.
        """
        ioctls.SET_USER_MEMORY_REGION.write(
            self.fd,
            slot=slot,
            flags=flags,
            guest_phys_addr=guest_phys_addr,
            memory_size=memory_size,
            userspace_addr=userspace_addr,
        )

    def get_dirty_log(self, slot: int, pages: int) -> bytes:
        """A bitmap of the slot's pages written since the last call; ``pages`` is its size.

        Without MANUAL_DIRTY_LOG_PROTECT2 the call also clears the log.
        """
        bitmap = bytearray(-(-pages // _BITMAP_WORD) * 8)
        ioctls.GET_DIRTY_LOG.write(self.fd, slot=slot, dirty_bitmap=address(bitmap))
        return bytes(bitmap)

    def clear_dirty_log(self, slot: int, first_page: int, pages: int, bitmap: bytes) -> None:
        """Watch again for writes to the pages in ``bitmap``, whose bit 0 is ``first_page``.

        ``first_page`` is a multiple of 64, and so is ``pages`` unless it ends with the slot.
        """
        if len(bitmap) * 8 < pages:
            raise ValueError(f"a bitmap of {len(bitmap)} bytes is too short for {pages} pages")
        buffer = bytearray(bitmap)
        ioctls.CLEAR_DIRTY_LOG.write(
            self.fd,
            slot=slot,
            num_pages=pages,
            first_page=first_page,
            dirty_bitmap=address(buffer),
        )

    def reset_dirty_rings(self) -> int:
        """Watch again for writes to the pages taken from the dirty rings; how many there were."""
        return ioctls.RESET_DIRTY_RINGS(self.fd)

    def register_coalesced_mmio(self, addr: int, size: int) -> None:
        """Gather guest writes to that range in the ring that FastMmio.take_tx drains."""
        ioctls.REGISTER_COALESCED_MMIO.write(self.fd, addr=addr, size=size)

    def unregister_coalesced_mmio(self, addr: int, size: int) -> None:
        """Undo register_coalesced_mmio of the same range."""
        ioctls.UNREGISTER_COALESCED_MMIO.write(self.fd, addr=addr, size=size)

    def mte_copy_tags(self, guest_ipa: int, tags: bytearray, *, to_guest: bool) -> int:
        """Copy MTE tags, one a byte for 16 bytes of memory; how many bytes of memory were done.

        Needs ARM_MTE.  ``guest_ipa`` and the length it spans are whole pages.
        """
        return ioctls.ARM_MTE_COPY_TAGS.write(
            self.fd,
            guest_ipa=guest_ipa,
            length=len(tags) * 16,
            addr=address(tags),
            flags=0 if to_guest else 1,
        )

    # vCPUs and devices

    @overload
    def create_vcpu(self, vcpu_id: int) -> Vcpu: ...
    @overload
    def create_vcpu(self, vcpu_id: int, kind: type[_Vcpu]) -> _Vcpu: ...
    def create_vcpu(self, vcpu_id: int, kind: type[Vcpu] = Vcpu) -> Vcpu:
        """Make a vCPU; all of them come before the GIC is initialised.

        ``kind`` is the class it is to be of.
        """
        return kind(
            ioctls.CREATE_VCPU(self.fd, vcpu_id, f"id={vcpu_id}"), vcpu_id, self.vcpu_mmap_size
        )

    def preferred_target(self) -> int:
        """The CPU model that Vcpu.init takes on this host."""
        return ioctls.ARM_PREFERRED_TARGET.read(self.fd)["target"]

    def create_device(self, type_: int, flags: int = 0) -> Device:
        """Make a device of that DeviceType in the kernel."""
        reply = ioctls.CREATE_DEVICE.read(self.fd, type=DeviceType.of(type_), flags=flags)
        return Device(reply["fd"], type_)

    def has_device(self, type_: int) -> bool:
        """Whether create_device would make that DeviceType, without making it."""
        try:
            ioctls.CREATE_DEVICE.read(self.fd, type=type_, flags=CREATE_DEVICE_TEST)
        except KvmError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                return False
            raise
        return True

    # Interrupts

    def irq_line(self, irq: int, level: bool) -> None:
        """Raise or lower an interrupt line; ``irq`` is made by spi() or ppi()."""
        result = native().lib.pyvmm_irq_line(self.fd, irq, level)
        if result < 0:
            raise ioctls.IRQ_LINE.error(-result, words({"irq": irq, "level": int(level)}))

    def signal_msi(self, address: int, data: int, devid: int | None = None) -> bool:
        """Send a message-signalled interrupt; False when the guest has not mapped it."""
        return (
            ioctls.SIGNAL_MSI.write(
                self.fd,
                address_lo=address & 0xFFFF_FFFF,
                address_hi=address >> 32,
                data=data,
                flags=0 if devid is None else MsiFlag.VALID_DEVID,
                devid=devid or 0,
            )
            > 0
        )

    def irqfd(self, fd: int, gsi: int, *, flags: int = 0, resample_fd: int = -1) -> None:
        """Let an eventfd raise the interrupt of a GSI; by default GSI n is SPI n.

        With ``resample_fd`` the interrupt is level-triggered: it stays raised until the guest has
        handled it, then KVM lowers it and signals that second eventfd.  IrqfdFlag.DEASSIGN undoes.
        """
        if resample_fd >= 0:
            ioctls.IRQFD.write(
                self.fd,
                fd=fd,
                gsi=gsi,
                flags=flags | IrqfdFlag.RESAMPLE,
                resamplefd=resample_fd,
            )
        else:
            ioctls.IRQFD.write(self.fd, fd=fd, gsi=gsi, flags=flags)

    def ioeventfd(
        self, fd: int, addr: int, length: int, *, datamatch: int | None = None, flags: int = 0
    ) -> None:
        """Let guest writes to an address signal an eventfd, instead of an exit.

        ``length`` is 1, 2, 4 or 8 bytes, or 0 for any; ``datamatch`` is the only value that counts.
        IoeventfdFlag.DEASSIGN, with the same arguments, undoes.
        """
        if datamatch is not None:
            flags |= IoeventfdFlag.DATAMATCH
        ioctls.IOEVENTFD.write(
            self.fd, datamatch=datamatch or 0, addr=addr, len=length, fd=fd, flags=flags
        )

    def set_gsi_routing(self, routes: Iterable[IrqchipRoute | MsiRoute]) -> None:
        """Replace the whole table of what each GSI does."""
        entries = [_routing_entry(route) for route in routes]
        table = structs.IRQ_ROUTING.pack({"nr": len(entries)}) + b"".join(entries)
        ioctls.SET_GSI_ROUTING.at(self.fd, table, words({"nr": len(entries)}))

    def set_device_addr(self, id_: int, addr: int) -> None:
        """Place a GICv2 the old way; a Device's attributes do it since Linux 3.15."""
        ioctls.ARM_SET_DEVICE_ADDR.write(self.fd, id=id_, addr=addr)

    # What guests may see

    def set_counter_offset(self, offset: int) -> None:
        """Let every counter of the guest read the host's less ``offset`` (COUNTER_OFFSET)."""
        ioctls.ARM_SET_COUNTER_OFFSET.write(self.fd, counter_offset=offset)

    def get_reg_writable_masks(self) -> dict[int, int]:
        """Which bits of which ID registers user space may change, by register id.

        Needs ARM_SUPPORTED_REG_MASK_RANGES.  Source: api.rst, KVM_ARM_GET_REG_WRITABLE_MASKS.
        """
        count = FeatureId.RANGE_SIZE
        buffer = bytearray(count * 8)
        ioctls.ARM_GET_REG_WRITABLE_MASKS.write(
            self.fd, addr=address(buffer), range=FeatureId.RANGE
        )
        masks = struct.unpack(f"<{count}Q", buffer)
        return {
            regs.sysreg(3, op1, 0, crm, op2): masks[row << 6 | crm << 3 | op2]
            for row, op1 in enumerate((0, 1, 3))
            for crm in range(8)
            for op2 in range(8)
            if masks[row << 6 | crm << 3 | op2]
        }

    def get_stats_fd(self) -> int:
        """A file descriptor of the VM's binary statistics; the caller closes it."""
        return ioctls.GET_STATS_FD(self.fd)


def _routing_entry(route: IrqchipRoute | MsiRoute) -> bytearray:
    if isinstance(route, IrqchipRoute):
        return structs.IRQ_ROUTING_IRQCHIP.pack(
            {"gsi": route.gsi, "type": IrqRouting.IRQCHIP, "pin": route.pin}
        )
    return structs.IRQ_ROUTING_MSI.pack(
        {
            "gsi": route.gsi,
            "type": IrqRouting.MSI,
            "flags": 0 if route.devid is None else MsiFlag.VALID_DEVID,
            "address_lo": route.address & 0xFFFF_FFFF,
            "address_hi": route.address >> 32,
            "data": route.data,
            "devid": route.devid or 0,
        }
    )
