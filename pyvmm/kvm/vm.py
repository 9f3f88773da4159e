"""A virtual machine: its memory, its interrupts, and the creation of vCPUs and devices."""

from __future__ import annotations

import errno
import itertools
import struct
from typing import TypeVar, overload

from pyvmm.errors import KvmError
from pyvmm.kvm import ioctls, regs, uapi
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.device import AttributeFd, Device
from pyvmm.kvm.native import address, native
from pyvmm.kvm.structs import words
from pyvmm.kvm.uapi import DeviceType
from pyvmm.kvm.vcpu import Vcpu

_Vcpu = TypeVar("_Vcpu", bound=Vcpu)

_FIRST_SPI = 32  # INTIDs.  Source: GICv3 architecture (Arm IHI 0069), table 2-1
_FIRST_PPI = 16
# op1, CRm and op2 of the registers in KVM_ARM_FEATURE_ID_RANGE.  Source: asm/kvm.h (arm64),
# KVM_ARM_FEATURE_ID_RANGE_IDX
_FEATURE_IDS = tuple(itertools.product((0, 1, 3), range(8), range(8)))
TAG_GRANULE = 16  # bytes of memory with one tag.  Source: Arm ARM DDI 0487, D10, "Allocation Tags"
_BITMAP_WORD = 64  # KVM's dirty bitmaps are arrays of 64-bit words


def spi(number: int) -> int:
    """Return the KVM_IRQ_LINE number of shared interrupt ``number`` (0 is INTID 32)."""
    return uapi.ARM_IRQ_TYPE_SPI << uapi.ARM_IRQ_TYPE_SHIFT | _FIRST_SPI + number


def ppi(vcpu: int, number: int) -> int:
    """Return the KVM_IRQ_LINE number of a vCPU's private interrupt (0 is INTID 16)."""
    return (
        (vcpu >> 8 & uapi.ARM_IRQ_VCPU2_MASK) << uapi.ARM_IRQ_VCPU2_SHIFT
        | uapi.ARM_IRQ_TYPE_PPI << uapi.ARM_IRQ_TYPE_SHIFT
        | (vcpu & uapi.ARM_IRQ_VCPU_MASK) << uapi.ARM_IRQ_VCPU_SHIFT
        | _FIRST_PPI + number
    )


class Vm(AttributeFd):
    """A virtual machine, created by System.create_vm."""

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd)
        self.vcpu_mmap_size = vcpu_mmap_size

    def check_extension(self, cap: int) -> int:
        """Return KVM's value of a capability for this VM."""
        return ioctls.CHECK_EXTENSION(self.fd, cap, lambda: words({"cap": cap}))

    def has(self, cap: int) -> bool:
        """Return whether this VM has that capability."""
        return self.check_extension(cap) > 0

    def enable_cap(self, cap: int, *args: int) -> None:
        """Enable a capability, with up to four arguments."""
        ioctls.ENABLE_CAP.write(self.fd, cap=cap, args=args)

    def writable_id_bits(self) -> dict[int, int]:
        """Return the bits that may be changed before the first KVM_RUN, by ID register.

        A register that is missing here is fixed; before Linux 6.7 all are.
        Source: Documentation/virt/kvm/api.rst, KVM_ARM_GET_REG_WRITABLE_MASKS
        """
        ranges = self.check_extension(Cap.ARM_SUPPORTED_REG_MASK_RANGES)
        if not ranges >> uapi.ARM_FEATURE_ID_RANGE & 1:
            return {}
        masks = bytearray(8 * uapi.ARM_FEATURE_ID_RANGE_SIZE)
        ioctls.ARM_GET_REG_WRITABLE_MASKS.write(
            self.fd, addr=address(masks), range=uapi.ARM_FEATURE_ID_RANGE
        )
        values = struct.unpack(f"<{uapi.ARM_FEATURE_ID_RANGE_SIZE}Q", masks)
        return {
            regs.sysreg(3, op1, 0, crm, op2): mask
            for ((op1, crm, op2), mask) in zip(_FEATURE_IDS, values, strict=True)
            if mask
        }

    # Memory

    def set_user_memory_region(
        self,
        slot: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        flags: int = 0,
    ) -> None:
        """Map memory of this process at a guest physical address; size 0 removes the slot.

        The memory must stay mapped while the slot exists. ``flags`` are the uapi.MEM_* bits.
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
        """Return a bitmap of the pages written since the last call, of the slot's ``pages``.

        Without MANUAL_DIRTY_LOG_PROTECT2 the call also clears the log.
        """
        bitmap = bytearray(-(-pages // _BITMAP_WORD) * 8)
        ioctls.GET_DIRTY_LOG.write(self.fd, slot=slot, dirty_bitmap=address(bitmap))
        return bytes(bitmap)

    def read_tags(self, gpa: int, length: int) -> bytearray:
        """Return the memory tags of whole host pages: a byte for each granule of 16 bytes."""
        tags = bytearray(length // TAG_GRANULE)
        self._copy_tags(gpa, length, tags, uapi.ARM_TAGS_FROM_GUEST)
        return tags

    def write_tags(self, gpa: int, length: int, tags: bytearray) -> None:
        """Set the memory tags of whole host pages: a byte for each granule of 16 bytes."""
        if len(tags) != length // TAG_GRANULE:
            raise ValueError(f"{len(tags)} tags for {length} bytes")
        self._copy_tags(gpa, length, tags, uapi.ARM_TAGS_TO_GUEST)

    def _copy_tags(self, gpa: int, length: int, tags: bytearray, flags: int) -> None:
        """Copy tags.  The kernel may stop after some pages, and returns how many bytes it did."""
        done = 0
        while done < length:
            done += ioctls.ARM_MTE_COPY_TAGS.write(
                self.fd,
                guest_ipa=gpa + done,
                length=length - done,
                addr=address(tags) + done // TAG_GRANULE,
                flags=flags,
            )

    def register_coalesced_mmio(self, addr: int, size: int) -> None:
        """Coalesce guest writes to that range in the ring that FastMmio.take_tx drains."""
        ioctls.REGISTER_COALESCED_MMIO.write(self.fd, addr=addr, size=size)

    def unregister_coalesced_mmio(self, addr: int, size: int) -> None:
        """Stop coalescing writes to that range."""
        ioctls.UNREGISTER_COALESCED_MMIO.write(self.fd, addr=addr, size=size)

    # vCPUs and devices

    @overload
    def create_vcpu(self, vcpu_id: int) -> Vcpu: ...
    @overload
    def create_vcpu(self, vcpu_id: int, kind: type[_Vcpu]) -> _Vcpu: ...
    def create_vcpu(self, vcpu_id: int, kind: type[Vcpu] = Vcpu) -> Vcpu:
        """Create a vCPU of class ``kind``, before the GIC is initialised."""
        return kind(
            ioctls.CREATE_VCPU(self.fd, vcpu_id, f"id={vcpu_id}"), vcpu_id, self.vcpu_mmap_size
        )

    def preferred_target(self) -> int:
        """Return the CPU model for Vcpu.init on this host."""
        return ioctls.ARM_PREFERRED_TARGET.read(self.fd)["target"]

    def create_device(self, type_: DeviceType) -> Device:
        """Create a device of that DeviceType in the kernel."""
        return Device(ioctls.CREATE_DEVICE.read(self.fd, type=type_)["fd"])

    def has_device(self, type_: DeviceType) -> bool:
        """Return whether the kernel can create that DeviceType, without creating it."""
        try:
            ioctls.CREATE_DEVICE.read(self.fd, type=type_, flags=uapi.CREATE_DEVICE_TEST)
        except KvmError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                return False
            raise
        return True

    # Interrupts

    def irq_line(self, irq: int, level: bool) -> None:
        """Raise or lower an interrupt line; ``irq`` is a number from spi() or ppi()."""
        result = native().lib.pyvmm_irq_line(self.fd, irq, level)
        if result < 0:
            raise ioctls.IRQ_LINE.error(-result, words({"irq": irq, "level": int(level)}))

    def signal_msi(self, address: int, data: int, devid: int | None = None) -> bool:
        """Send a message-signalled interrupt; return False if the guest has not mapped it."""
        return (
            ioctls.SIGNAL_MSI.write(
                self.fd,
                address_lo=address & 0xFFFF_FFFF,
                address_hi=address >> 32,
                data=data,
                flags=0 if devid is None else uapi.MSI_VALID_DEVID,
                devid=devid or 0,
            )
            > 0
        )

    def irqfd(self, fd: int, gsi: int, *, flags: int = 0, resample_fd: int = -1) -> None:
        """Raise the interrupt of a GSI when an eventfd is signalled; by default GSI n is SPI n.

        With ``resample_fd`` the interrupt is level-triggered. It stays raised until the guest has
        handled it; then KVM lowers it and signals ``resample_fd``. The flag IRQFD_FLAG_DEASSIGN
        ends this.
        """
        if resample_fd >= 0:
            ioctls.IRQFD.write(
                self.fd,
                fd=fd,
                gsi=gsi,
                flags=flags | uapi.IRQFD_FLAG_RESAMPLE,
                resamplefd=resample_fd,
            )
        else:
            ioctls.IRQFD.write(self.fd, fd=fd, gsi=gsi, flags=flags)

    def ioeventfd(
        self, fd: int, addr: int, length: int, *, datamatch: int | None = None, flags: int = 0
    ) -> None:
        """Signal an eventfd at a guest's write to an address, without an exit to user space.

        ``length`` is 1, 2, 4 or 8 bytes, or 0 for any. With ``datamatch`` only writes of that value
        signal. The flag IOEVENTFD_FLAG_DEASSIGN, with the same arguments, ends this.
        """
        if datamatch is not None:
            flags |= uapi.IOEVENTFD_FLAG_DATAMATCH
        ioctls.IOEVENTFD.write(
            self.fd, datamatch=datamatch or 0, addr=addr, len=length, fd=fd, flags=flags
        )

    def get_stats_fd(self) -> int:
        """Return a file descriptor of the VM's binary statistics; the caller closes it."""
        return ioctls.GET_STATS_FD(self.fd)
