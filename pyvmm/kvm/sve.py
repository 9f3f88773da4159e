"""The vector lengths of SVE: what the host has, and what a vCPU gets.  All lengths are in bits."""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.kvm.vcpu import Vcpu

MIN_IPA_BITS = 32  # a VM of this size every host can make
QUADWORD = 128  # bits; the unit of a vector length
MAX_BITS = 512 * QUADWORD  # as far as KVM_REG_ARM64_SVE_VLS reaches


def read_vls(vcpu: Vcpu) -> frozenset[int]:
    """The vector lengths a vCPU has (with SVE, initialised)."""
    bitmap = vcpu.get_one_reg(regs.SVE_VLS)
    return frozenset(
        (bit + 1) * QUADWORD for bit in range(bitmap.bit_length()) if bitmap >> bit & 1
    )


def write_vls(vcpu: Vcpu, lengths: Iterable[int]) -> None:
    """Choose a vCPU's vector lengths, after init and before finalize.

    KVM takes a set only if it holds every length of the host's up to its own largest.
    Raises KvmError for another set, ValueError for what is no vector length at all.
    """
    bitmap = 0
    for length in lengths:
        if length % QUADWORD or not QUADWORD <= length <= MAX_BITS:
            raise ValueError(f"{length} is not a multiple of {QUADWORD} up to {MAX_BITS}")
        bitmap |= 1 << (length // QUADWORD - 1)
    vcpu.set_one_reg(regs.SVE_VLS, bitmap)


def host_vector_lengths(system: System) -> frozenset[int]:
    """The vector lengths the host can give a guest; none when it has no SVE.

    Asked of a vCPU made for the purpose, in a VM of its own that ends with the call.
    """
    if not system.has(Cap.ARM_SVE):
        return frozenset()
    with system.create_vm(MIN_IPA_BITS) as vm, vm.create_vcpu(0) as vcpu:
        vcpu.init(vm.preferred_target(), [VcpuFeature.SVE])
        return read_vls(vcpu)
