"""The constants of KVM's interface, except ioctls and capabilities, by the kernel's names.

A name here is the kernel's without its prefix, which C_PREFIX holds. NEWER lists the names that the
oldest supported headers (Linux 6.1) lack. _build.py checks every value against the headers.
Source: linux/kvm.h and asm/kvm.h (arm64) of Linux v7.2.
"""

from __future__ import annotations

from enum import IntEnum

from pyvmm.kvm.numbers import Numbers

API_VERSION = 12
CREATE_DEVICE_TEST = 1  # a flag of KVM_CREATE_DEVICE: check only


class ExitReason(Numbers):
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


class SystemEvent(Numbers):
    """A guest's requests to the machine (kvm_run.system_event.type)."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5


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


class Target(Numbers):
    """The CPU models of KVM_ARM_VCPU_INIT; today's kernels prefer GENERIC_V8."""

    AEM_V8 = 0
    FOUNDATION_V8 = 1
    CORTEX_A57 = 2
    XGENE_POTENZA = 3
    CORTEX_A53 = 4
    GENERIC_V8 = 5


class DeviceType(Numbers):
    """The devices of KVM_CREATE_DEVICE on arm64."""

    VFIO = 4
    ARM_VGIC_V2 = 5
    ARM_VGIC_V3 = 7
    ARM_VGIC_ITS = 8
    ARM_PV_TIME = 10
    ARM_VGIC_V5 = 16


class InternalError(Numbers):
    """kvm_run.internal.suberror."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


class MemoryFlag(Numbers):
    """Bits of kvm_userspace_memory_region.flags."""

    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1
    GUEST_MEMFD = 1 << 2


class IrqfdFlag(Numbers):
    """Bits of kvm_irqfd.flags."""

    DEASSIGN = 1 << 0
    RESAMPLE = 1 << 1


class IoeventfdFlag(Numbers):
    """Bits of kvm_ioeventfd.flags."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1
    DEASSIGN = 1 << 2


class IrqType(Numbers):
    """The interrupt types of a KVM_IRQ_LINE number."""

    CPU = 0  # the IRQ or FIQ line of a vCPU, without an in-kernel GIC
    SPI = 1
    PPI = 2


class IrqField(Numbers):
    """The bit fields of a KVM_IRQ_LINE number."""

    VCPU2_SHIFT = 28  # vCPU index, bits 11:8
    VCPU2_MASK = 0xF
    TYPE_SHIFT = 24
    TYPE_MASK = 0xF
    VCPU_SHIFT = 16  # vCPU index, bits 7:0
    VCPU_MASK = 0xFF
    NUM_SHIFT = 0
    NUM_MASK = 0xFFFF


class MsiFlag(Numbers):
    """Bits of kvm_msi.flags."""

    VALID_DEVID = 1 << 0


class GuestDebug(Numbers):
    """Bits of kvm_guest_debug.control."""

    ENABLE = 1 << 0
    SINGLESTEP = 1 << 1
    USE_SW_BP = 1 << 16
    USE_HW = 1 << 17


class VgicGroup(Numbers):
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


class VgicAddr(Numbers):
    """Attributes of VgicGroup.ADDR."""

    V2_ADDR_TYPE_DIST = 0
    V2_ADDR_TYPE_CPU = 1
    V3_ADDR_TYPE_DIST = 2
    V3_ADDR_TYPE_REDIST = 3
    ITS_ADDR_TYPE = 4
    V3_ADDR_TYPE_REDIST_REGION = 5


class VgicCtrl(Numbers):
    """Attributes of VgicGroup.CTRL."""

    VGIC_CTRL_INIT = 0
    ITS_SAVE_TABLES = 1
    ITS_RESTORE_TABLES = 2
    VGIC_SAVE_PENDING_TABLES = 3
    ITS_CTRL_RESET = 4
    VGIC_USERSPACE_PPIS = 5


class VgicField(Numbers):
    """The bit fields of a GIC attribute number."""

    V3_MPIDR_SHIFT = 32
    LINE_LEVEL_INFO_SHIFT = 10


class VcpuGroup(Numbers):
    """Attribute groups of a vCPU."""

    PMU_V3_CTRL = 0
    TIMER_CTRL = 1
    PVTIME_CTRL = 2


class PmuAttr(Numbers):
    """Attributes of VcpuGroup.PMU_V3_CTRL."""

    IRQ = 0
    INIT = 1
    FILTER = 2
    SET_PMU = 3
    SET_NR_COUNTERS = 4


class TimerAttr(Numbers):
    """Attributes of VcpuGroup.TIMER_CTRL: the private interrupt of each timer."""

    IRQ_VTIMER = 0
    IRQ_PTIMER = 1
    IRQ_HVTIMER = 2
    IRQ_HPTIMER = 3


class PvtimeAttr(Numbers):
    """Attributes of VcpuGroup.PVTIME_CTRL."""

    IPA = 0


class VmGroup(Numbers):
    """Attribute groups of a VM."""

    SMCCC_CTRL = 0


class SmcccAttr(Numbers):
    """Attributes of VmGroup.SMCCC_CTRL."""

    FILTER = 0


# The kernel's prefix of each class's names.
C_PREFIX: dict[type[Numbers | IntEnum], str] = {
    ExitReason: "KVM_EXIT_",
    SystemEvent: "KVM_SYSTEM_EVENT_",
    MpState: "KVM_MP_STATE_",
    VcpuFeature: "KVM_ARM_VCPU_",
    Target: "KVM_ARM_TARGET_",
    DeviceType: "KVM_DEV_TYPE_",
    InternalError: "KVM_INTERNAL_ERROR_",
    MemoryFlag: "KVM_MEM_",
    IrqfdFlag: "KVM_IRQFD_FLAG_",
    IoeventfdFlag: "KVM_IOEVENTFD_FLAG_",
    IrqType: "KVM_ARM_IRQ_TYPE_",
    IrqField: "KVM_ARM_IRQ_",
    MsiFlag: "KVM_MSI_",
    GuestDebug: "KVM_GUESTDBG_",
    VgicGroup: "KVM_DEV_ARM_VGIC_GRP_",
    VgicAddr: "KVM_VGIC_",
    VgicCtrl: "KVM_DEV_ARM_",
    VgicField: "KVM_DEV_ARM_VGIC_",
    VcpuGroup: "KVM_ARM_VCPU_",
    PmuAttr: "KVM_ARM_VCPU_PMU_V3_",
    TimerAttr: "KVM_ARM_VCPU_TIMER_",
    PvtimeAttr: "KVM_ARM_VCPU_PVTIME_",
    VmGroup: "KVM_ARM_VM_",
    SmcccAttr: "KVM_ARM_VM_SMCCC_",
}

NEWER = frozenset(
    {
        "KVM_EXIT_MEMORY_FAULT",
        "KVM_EXIT_ARM_SEA",
        "KVM_EXIT_ARM_LDST64B",
        "KVM_ARM_VCPU_HAS_EL2",
        "KVM_ARM_VCPU_HAS_EL2_E2H0",
        "KVM_DEV_TYPE_ARM_VGIC_V5",
        "KVM_MEM_GUEST_MEMFD",
        "KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ",
        "KVM_DEV_ARM_VGIC_USERSPACE_PPIS",
        "KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS",
        "KVM_ARM_VCPU_TIMER_IRQ_HVTIMER",
        "KVM_ARM_VCPU_TIMER_IRQ_HPTIMER",
        "KVM_ARM_VM_SMCCC_CTRL",
        "KVM_ARM_VM_SMCCC_FILTER",
    }
)
