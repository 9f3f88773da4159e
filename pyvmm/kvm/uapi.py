"""The constants of KVM's interface, except ioctls and capabilities, by the kernel's names.

A name here is the kernel's without its prefix: KVM_ and, for members of a class, the rest that
_build.py lists. _build.py checks every value against the headers. Classes are for the numbers that
messages name; flags and bit fields are plain ints, which a run imports faster.
Source: linux/kvm.h and asm/kvm.h (arm64) of Linux v7.2.
"""

from __future__ import annotations

from enum import IntEnum

API_VERSION = 12
CREATE_DEVICE_TEST = 1  # a flag of KVM_CREATE_DEVICE: check only

# kvm_userspace_memory_region.flags
MEM_LOG_DIRTY_PAGES = 1 << 0
ARM_TAGS_TO_GUEST = 0  # flags of KVM_ARM_MTE_COPY_TAGS
ARM_TAGS_FROM_GUEST = 1
MEM_READONLY = 1 << 1

# kvm_irqfd.flags
IRQFD_FLAG_DEASSIGN = 1 << 0
IRQFD_FLAG_RESAMPLE = 1 << 1

# kvm_ioeventfd.flags
IOEVENTFD_FLAG_DATAMATCH = 1 << 0
IOEVENTFD_FLAG_DEASSIGN = 1 << 2

# The number of an interrupt line in KVM_IRQ_LINE
ARM_IRQ_VCPU2_SHIFT = 28  # vCPU index, bits 11:8
ARM_IRQ_VCPU2_MASK = 0xF
ARM_IRQ_TYPE_SHIFT = 24
ARM_IRQ_TYPE_SPI = 1
ARM_IRQ_TYPE_PPI = 2
ARM_IRQ_VCPU_SHIFT = 16  # vCPU index, bits 7:0
ARM_IRQ_VCPU_MASK = 0xFF

# reg_mask_range.range of KVM_ARM_GET_REG_WRITABLE_MASKS, and how many masks it has
ARM_FEATURE_ID_RANGE = 0
ARM_FEATURE_ID_RANGE_SIZE = 3 * 8 * 8

# kvm_msi.flags
MSI_VALID_DEVID = 1 << 0

# kvm_guest_debug.control
GUESTDBG_ENABLE = 1 << 0
GUESTDBG_SINGLESTEP = 1 << 1
GUESTDBG_USE_SW_BP = 1 << 16
GUESTDBG_USE_HW = 1 << 17

DEV_ARM_VGIC_V3_MPIDR_SHIFT = 32  # in a GICv3's attribute number


class ExitReason(IntEnum):
    """The exit reasons of KVM_RUN (kvm_run.exit_reason)."""

    UNKNOWN = 0
    HYPERCALL = 3
    DEBUG = 4
    MMIO = 6
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    ARM_NISV = 28
    DIRTY_RING_FULL = 31
    MEMORY_FAULT = 39
    ARM_SEA = 41
    ARM_LDST64B = 42


class SystemEvent(IntEnum):
    """A guest's requests to the machine (kvm_run.system_event.type)."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5


class InternalError(IntEnum):
    """kvm_run.internal.suberror."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


class MpState(IntEnum):
    """A vCPU's power states on arm64 (kvm_mp_state)."""

    RUNNABLE = 0
    STOPPED = 5
    SUSPENDED = 10


class VcpuFeature(IntEnum):
    """The bits of kvm_vcpu_init.features; FINALIZE takes the same numbers."""

    POWER_OFF = 0
    EL1_32BIT = 1
    PSCI_0_2 = 2
    PMU_V3 = 3
    SVE = 4
    PTRAUTH_ADDRESS = 5
    PTRAUTH_GENERIC = 6
    HAS_EL2 = 7
    HAS_EL2_E2H0 = 8


class DeviceType(IntEnum):
    """The devices of KVM_CREATE_DEVICE."""

    ARM_VGIC_V2 = 5
    ARM_VGIC_V3 = 7
    ARM_VGIC_ITS = 8


class VgicGroup(IntEnum):
    """Attribute groups of a GIC or ITS device."""

    ADDR = 0
    DIST_REGS = 1
    CPU_REGS = 2
    NR_IRQS = 3
    CTRL = 4
    REDIST_REGS = 5
    CPU_SYSREGS = 6
    LEVEL_INFO = 7
    ITS_REGS = 8
    MAINT_IRQ = 9


class VgicAddr(IntEnum):
    """Attributes of VgicGroup.ADDR."""

    V2_ADDR_TYPE_DIST = 0
    V2_ADDR_TYPE_CPU = 1
    V3_ADDR_TYPE_DIST = 2
    V3_ADDR_TYPE_REDIST = 3
    ITS_ADDR_TYPE = 4


class VgicCtrl(IntEnum):
    """Attributes of VgicGroup.CTRL."""

    VGIC_CTRL_INIT = 0
    ITS_SAVE_TABLES = 1
    ITS_RESTORE_TABLES = 2
    VGIC_SAVE_PENDING_TABLES = 3


class VcpuGroup(IntEnum):
    """Attribute groups of a vCPU."""

    PMU_V3_CTRL = 0
    TIMER_CTRL = 1
    PVTIME_CTRL = 2


class PmuAttr(IntEnum):
    """Attributes of VcpuGroup.PMU_V3_CTRL."""

    IRQ = 0
    INIT = 1


class PvtimeAttr(IntEnum):
    """Attributes of VcpuGroup.PVTIME_CTRL."""

    IPA = 0


def named(kind: type[IntEnum], number: int) -> int:
    """Return the member with that number, or the number itself if pyvmm does not know it."""
    try:
        return kind(number)
    except ValueError:
        return number
