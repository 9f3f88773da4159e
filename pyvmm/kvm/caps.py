"""KVM's capabilities on arm64, for System.check_extension and Vm.check_extension.

Source: linux/kvm.h of Linux v7.2. A comment names the release that brought the capability to arm64,
or the meaning of a positive value, from Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

from enum import IntEnum


class Cap(IntEnum):
    """The numbers of KVM_CHECK_EXTENSION: KVM_CAP_ and the name."""

    IRQCHIP = 0  # an in-kernel GIC
    USER_MEMORY = 3
    NR_VCPUS = 9  # the recommended number of vCPUs: the CPUs online
    NR_MEMSLOTS = 10  # how many memory slots a VM has
    MP_STATE = 14
    COALESCED_MMIO = 15  # the page of the vCPU's mapping where the ring is
    SYNC_MMU = 16  # changes to the host's mappings reach the guest
    DESTROY_MEMORY_REGION_WORKS = 21
    SET_GUEST_DEBUG = 23
    IRQ_ROUTING = 25  # how many routing entries a VM has
    JOIN_MEMORY_REGIONS_WORKS = 30
    IRQFD = 32
    IOEVENTFD = 36
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41  # v4.19
    MAX_VCPUS = 66  # on a VM: the limit of its GIC
    ONE_REG = 70
    SIGNAL_MSI = 77  # an ITS, or GICv2m
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    ARM_PSCI = 87  # v3.9
    ARM_SET_DEVICE_ADDR = 88  # v3.9
    DEVICE_CTRL = 89
    ARM_EL1_32BIT = 93  # v3.11: the CPUs run 32-bit code at EL1
    ENABLE_CAP_VM = 98
    IOEVENTFD_NO_LENGTH = 100
    VM_ATTRIBUTES = 101  # never on arm64, whose VMs have attributes since v6.4
    ARM_PSCI_0_2 = 102  # v3.16
    CHECK_EXTENSION_VM = 105
    MULTI_ADDRESS_SPACE = 118
    GUEST_DEBUG_HW_BPS = 119  # how many hardware breakpoints
    GUEST_DEBUG_HW_WPS = 120  # how many hardware watchpoints
    IOEVENTFD_ANY_LENGTH = 122
    ARM_PMU_V3 = 126  # v4.6
    VCPU_ATTRIBUTES = 127
    MAX_VCPU_ID = 128
    MSI_DEVID = 131  # v4.8: on a VM, once it has an ITS
    IMMEDIATE_EXIT = 136  # v4.11
    ARM_USER_IRQ = 144  # v4.12
    ARM_INJECT_SERROR_ESR = 158  # v4.19: the CPUs have the RAS extension
    COALESCED_PIO = 162
    ARM_VM_IPA_SIZE = 165  # v4.20: the largest guest physical address, in bits
    MANUAL_DIRTY_LOG_PROTECT2 = 168  # v5.2
    ARM_SVE = 170  # v5.2
    ARM_PTRAUTH_ADDRESS = 171  # v5.2
    ARM_PTRAUTH_GENERIC = 172  # v5.2
    PMU_EVENT_FILTER = 173
    ARM_IRQ_LINE_LAYOUT_2 = 174  # v5.4: vCPU indices above 255 in KVM_IRQ_LINE
    ARM_NISV_TO_USER = 177  # v5.5
    ARM_INJECT_EXT_DABT = 178  # v5.5
    HALT_POLL = 182  # v5.8
    LAST_CPU = 184
    STEAL_TIME = 187  # v5.10: the CPUs' stolen time can be shown to the guest
    DIRTY_LOG_RING = 192  # bytes; arm64 has DIRTY_LOG_RING_ACQ_REL instead
    SET_GUEST_DEBUG2 = 195
    PTP_KVM = 198  # v5.14
    EXIT_HYPERCALL = 201
    BINARY_STATS_FD = 203  # v5.14
    ARM_MTE = 205  # v5.14
    VM_GPA_BITS = 207
    SYS_ATTRIBUTES = 209
    SYSTEM_EVENT_DATA = 215  # v5.19
    ARM_SYSTEM_SUSPEND = 216  # v5.19
    DIRTY_LOG_RING_ACQ_REL = 223  # v6.2: bytes of the largest dirty ring
    DIRTY_LOG_RING_WITH_BITMAP = 225  # v6.2
    COUNTER_OFFSET = 227  # v6.4
    ARM_EAGER_SPLIT_CHUNK_SIZE = 228  # v6.5: bytes
    ARM_SUPPORTED_BLOCK_SIZES = 229  # v6.5: a bitmap of sizes
    ARM_SUPPORTED_REG_MASK_RANGES = 230  # v6.7: a bitmap of ranges
    USER_MEMORY2 = 231  # v6.8
    MEMORY_FAULT_INFO = 232  # v6.8
    MEMORY_ATTRIBUTES = 233  # v6.8
    GUEST_MEMFD = 234  # v6.8
    PRE_FAULT_MEMORY = 236  # v6.11
    ARM_WRITABLE_IMP_ID_REGS = 239  # v6.15
    ARM_EL2 = 240  # v6.16: nested virtualization
    ARM_EL2_E2H0 = 241  # v6.16
    ARM_CACHEABLE_PFNMAP_SUPPORTED = 243  # v6.17
    GUEST_MEMFD_FLAGS = 244  # v6.18: bits
    ARM_SEA_TO_USER = 245  # v6.19
