"""The guest's calls of the Power State Coordination Interface.  Source: Arm DEN 0022.

KVM handles PSCI (a vCPU with the PSCI_0_2 feature). It reports SYSTEM_OFF and SYSTEM_RESET, which
concern the whole machine, as an exit.
"""

from __future__ import annotations

from enum import IntEnum

from pyvmm.arm64.core import Mpidr
from pyvmm.arm64.unitregs import PsciVersion

_SMC32 = 0x8400_0000
_SMC64 = 0xC400_0000


class Function(IntEnum):
    """The function that a guest calls, in W0; those with 64 take 64-bit arguments."""

    PSCI_VERSION = _SMC32 + 0
    CPU_SUSPEND = _SMC32 + 1
    CPU_OFF = _SMC32 + 2
    CPU_ON = _SMC32 + 3
    AFFINITY_INFO = _SMC32 + 4
    MIGRATE = _SMC32 + 5
    MIGRATE_INFO_TYPE = _SMC32 + 6
    MIGRATE_INFO_UP_CPU = _SMC32 + 7
    SYSTEM_OFF = _SMC32 + 8
    SYSTEM_RESET = _SMC32 + 9
    PSCI_FEATURES = _SMC32 + 10
    SYSTEM_SUSPEND = _SMC32 + 14
    SYSTEM_RESET2 = _SMC32 + 18
    SYSTEM_OFF2 = _SMC32 + 21
    CPU_SUSPEND_64 = _SMC64 + 1
    CPU_ON_64 = _SMC64 + 3
    AFFINITY_INFO_64 = _SMC64 + 4
    MIGRATE_64 = _SMC64 + 5
    MIGRATE_INFO_UP_CPU_64 = _SMC64 + 7
    SYSTEM_SUSPEND_64 = _SMC64 + 14
    SYSTEM_RESET2_64 = _SMC64 + 18
    SYSTEM_OFF2_64 = _SMC64 + 21


class Return(IntEnum):
    """The signed result of a call, in X0."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMETERS = -2
    DENIED = -3
    ALREADY_ON = -4
    ON_PENDING = -5
    INTERNAL_FAILURE = -6
    NOT_PRESENT = -7
    DISABLED = -8
    INVALID_ADDRESS = -9


V1_0 = PsciVersion.of(MAJOR=1, MINOR=0)
V1_1 = PsciVersion.of(MAJOR=1, MINOR=1)


def mpidr(vcpu_id: int) -> Mpidr:
    """Return the MPIDR_EL1 that KVM gives a vCPU: 16 a cluster, as a GICv3 SGI addresses them.

    Its affinity is the vCPU's address in a call.
    Source: reset_mpidr() in arch/arm64/kvm/sys_regs.c.
    """
    level1, level2 = vcpu_id >> 4 & 0xFF, vcpu_id >> 12 & 0xFF
    return Mpidr.of(RES1=1, Aff0=vcpu_id & 0xF, Aff1=level1, Aff2=level2)
