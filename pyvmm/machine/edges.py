"""What becomes of accesses to memory of devices that has no answer: the guest is told, or the user.

A write to persistent memory that is read-only is an external abort, as on hardware where nothing
takes a write; Linux ends the program, or the kernel thread, that did it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pyvmm.errors import HostError, KvmError
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason
from pyvmm.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    from pyvmm.devices.virtio.mmio import VirtioMmio
    from pyvmm.devices.virtio.pmem import VirtioPmem

ISS_WNR = 1 << 6  # the access was a write.  Source: Arm DDI 0487, ESR_EL1, ISS for a Data Abort


def refuse_write(vcpu: Vcpu, leave: Exit, slots: Iterable[VirtioMmio]) -> bool:
    """Answer an exit that is a write to read-only memory; whether it was one.

    Source: Linux, Documentation/virt/kvm/api.rst, KVM_SET_VCPU_EVENTS on arm64: the abort takes
    the place of the access, decoded (KVM_EXIT_MMIO) or not (KVM_EXIT_ARM_NISV).
    """
    address = leave.address
    is_write = leave.is_write
    if leave.reason == ExitReason.ARM_NISV:
        address = leave.fields["fault_ipa"]
        is_write = bool(leave.fields["esr_iss"] & ISS_WNR)
    if not is_write or not any(
        pmem.disk.read_only and pmem.content.contains(address, 1) for pmem in _pmems(slots)
    ):
        return False
    from dataclasses import replace  # late: as rare as such a write

    vcpu.set_vcpu_events(replace(vcpu.get_vcpu_events(), ext_dabt_pending=True))
    return True


def explain(error: KvmError, slots: Iterable[VirtioMmio]) -> HostError:
    """The reason of a KVM_RUN that failed, where it is a file's."""
    if error.errno == errno.EFAULT:
        for pmem in _pmems(slots):
            if missing := pmem.content.missing:
                return HostError(
                    f"--pmem {pmem.backing}: the file has become {missing} bytes shorter while "
                    "the guest had it as memory, and the guest accessed them",
                    hint=f"{error.message}; what the guest flushed of the rest is in the file",
                )
            if pmem.content.is_full:
                return HostError(
                    f"--pmem {pmem.backing}: no space is left for what the guest writes",
                    hint=f"{error.message}; fallocate -l {pmem.size} takes the space beforehand",
                )
    return error


def _pmems(slots: Iterable[VirtioMmio]) -> Iterator[VirtioPmem]:
    for transport in slots:
        from pyvmm.devices.virtio.pmem import VirtioPmem

        if isinstance(transport.device, VirtioPmem):
            yield transport.device
