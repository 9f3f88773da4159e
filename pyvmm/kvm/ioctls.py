"""The table of KVM's ioctls on arm64, and their calls.

An Ioctl raises KvmError with its name, its arguments in words, the errno and a hint. It repeats a
call that a signal interrupted. vcpu.py runs KVM_RUN through run.c instead: a kick must end it
with EINTR.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from pyvmm.errors import KvmError
from pyvmm.kvm import structs
from pyvmm.kvm.native import address, native
from pyvmm.kvm.structs import Struct, Value, words

# A call's arguments in an error message, formatted only for an error.
Words = str | Callable[[], str]

_KVMIO = 0xAE
_DIRECTIONS = {"": 0, "w": 1, "r": 2, "wr": 3}  # _IOC_WRITE: the kernel reads the structure


class Ioctl:
    """One ioctl: its name, number and structure; ``direction`` is "w" if user space writes it."""

    def __init__(
        self, name: str, number: int, direction: str = "", struct: Struct | None = None
    ) -> None:
        self.name = name
        self._direction, self._number = direction, number
        self.struct = struct

    @functools.cached_property
    def number(self) -> int:
        """The ioctl's number."""
        size = self.struct.size if self.struct else 0
        return _DIRECTIONS[self._direction] << 30 | size << 16 | _KVMIO << 8 | self._number

    def __call__(self, fd: int, argument: int = 0, arguments: Words = "") -> int:
        """Call the ioctl with a number or an address; ``arguments`` shows them in an error."""
        result: int = native().lib.pyvmm_ioctl(fd, self.number, argument)
        if result < 0:
            raise self.error(-result, arguments)
        return result

    def at(self, fd: int, buffer: bytearray, arguments: Words) -> int:
        """Call the ioctl with the address of ``buffer``, which the kernel may write."""
        return self(fd, address(buffer), arguments)

    def write(self, fd: int, /, **values: Value) -> int:
        """Call the ioctl with the structure of these members."""
        return self.at(fd, self._struct.pack(values), lambda: words(values))

    def read(self, fd: int, /, **values: Value) -> dict[str, int]:
        """Call the ioctl, which fills the structure, and return its single members."""
        buffer = self._struct.pack(values)
        self.at(fd, buffer, lambda: words(values))
        return self._struct.unpack(buffer)

    def error(self, errno: int, arguments: Words) -> KvmError:
        """Return this ioctl's error."""
        from pyvmm.kvm.hints import hint  # lazily: most runs have no errors

        said = arguments if isinstance(arguments, str) else arguments()
        return KvmError(self.name, said, errno, hint=hint(self.name, errno))

    @property
    def _struct(self) -> Struct:
        if self.struct is None:
            raise TypeError(f"{self.name} takes no structure")
        return self.struct


# /dev/kvm, in the order of linux/kvm.h.
GET_API_VERSION = Ioctl("KVM_GET_API_VERSION", 0x00)
CREATE_VM = Ioctl("KVM_CREATE_VM", 0x01)
CHECK_EXTENSION = Ioctl("KVM_CHECK_EXTENSION", 0x03)  # also on a VM
GET_VCPU_MMAP_SIZE = Ioctl("KVM_GET_VCPU_MMAP_SIZE", 0x04)

# A VM.
CREATE_VCPU = Ioctl("KVM_CREATE_VCPU", 0x41)
GET_DIRTY_LOG = Ioctl("KVM_GET_DIRTY_LOG", 0x42, "w", structs.DIRTY_LOG)
SET_USER_MEMORY_REGION = Ioctl(
    "KVM_SET_USER_MEMORY_REGION", 0x46, "w", structs.USERSPACE_MEMORY_REGION
)
IRQ_LINE = Ioctl("KVM_IRQ_LINE", 0x61, "w", structs.IRQ_LEVEL)
REGISTER_COALESCED_MMIO = Ioctl(
    "KVM_REGISTER_COALESCED_MMIO", 0x67, "w", structs.COALESCED_MMIO_ZONE
)
UNREGISTER_COALESCED_MMIO = Ioctl(
    "KVM_UNREGISTER_COALESCED_MMIO", 0x68, "w", structs.COALESCED_MMIO_ZONE
)
IRQFD = Ioctl("KVM_IRQFD", 0x76, "w", structs.IRQFD)
IOEVENTFD = Ioctl("KVM_IOEVENTFD", 0x79, "w", structs.IOEVENTFD)
ENABLE_CAP = Ioctl("KVM_ENABLE_CAP", 0xA3, "w", structs.ENABLE_CAP)
SIGNAL_MSI = Ioctl("KVM_SIGNAL_MSI", 0xA5, "w", structs.MSI)
ARM_PREFERRED_TARGET = Ioctl("KVM_ARM_PREFERRED_TARGET", 0xAF, "r", structs.VCPU_INIT)
ARM_MTE_COPY_TAGS = Ioctl("KVM_ARM_MTE_COPY_TAGS", 0xB4, "r", structs.COPY_MTE_TAGS)  # v5.14
ARM_GET_REG_WRITABLE_MASKS = Ioctl(  # v6.7
    "KVM_ARM_GET_REG_WRITABLE_MASKS", 0xB6, "r", structs.REG_MASK_RANGE
)
GET_STATS_FD = Ioctl("KVM_GET_STATS_FD", 0xCE)  # also on a vCPU
CREATE_DEVICE = Ioctl("KVM_CREATE_DEVICE", 0xE0, "wr", structs.CREATE_DEVICE)

# A device, a VM or a vCPU.
SET_DEVICE_ATTR = Ioctl("KVM_SET_DEVICE_ATTR", 0xE1, "w", structs.DEVICE_ATTR)
GET_DEVICE_ATTR = Ioctl("KVM_GET_DEVICE_ATTR", 0xE2, "w", structs.DEVICE_ATTR)
HAS_DEVICE_ATTR = Ioctl("KVM_HAS_DEVICE_ATTR", 0xE3, "w", structs.DEVICE_ATTR)

# A vCPU.
RUN = Ioctl("KVM_RUN", 0x80)
GET_MP_STATE = Ioctl("KVM_GET_MP_STATE", 0x98, "r", structs.MP_STATE)
SET_MP_STATE = Ioctl("KVM_SET_MP_STATE", 0x99, "w", structs.MP_STATE)
SET_GUEST_DEBUG = Ioctl("KVM_SET_GUEST_DEBUG", 0x9B, "w", structs.GUEST_DEBUG)
GET_VCPU_EVENTS = Ioctl("KVM_GET_VCPU_EVENTS", 0x9F, "r", structs.VCPU_EVENTS)
SET_VCPU_EVENTS = Ioctl("KVM_SET_VCPU_EVENTS", 0xA0, "w", structs.VCPU_EVENTS)
GET_ONE_REG = Ioctl("KVM_GET_ONE_REG", 0xAB, "w", structs.ONE_REG)
SET_ONE_REG = Ioctl("KVM_SET_ONE_REG", 0xAC, "w", structs.ONE_REG)
ARM_VCPU_INIT = Ioctl("KVM_ARM_VCPU_INIT", 0xAE, "w", structs.VCPU_INIT)
GET_REG_LIST = Ioctl("KVM_GET_REG_LIST", 0xB0, "wr", structs.REG_LIST)
ARM_VCPU_FINALIZE = Ioctl("KVM_ARM_VCPU_FINALIZE", 0xC2, "w", structs.INT)
