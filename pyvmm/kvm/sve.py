"""SVE's vector lengths, of the host and of a vCPU, in bits."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from pyvmm.base.records import Record
from pyvmm.errors import HostError
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.native import native
from pyvmm.kvm.regs import RegisterFile
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import VcpuFeature

MIN_IPA_BITS = 32  # supported by every host
VQ_BITS = 128  # the unit of a vector length.  Source: asm/sve_context.h
MAX_BITS = 512 * VQ_BITS  # the limit of KVM_REG_ARM64_SVE_VLS and PR_SVE_SET_VL


class OwnLengths(Record):
    """The vector lengths of the host's own programs, from two sources that must agree."""

    prctl: frozenset[int]  # the results of PR_SVE_SET_VL
    rdvl: frozenset[int]  # the results of the instruction RDVL


def read_vls(vcpu: RegisterFile) -> frozenset[int]:
    """Return the vector lengths of an initialised vCPU with SVE."""
    return lengths(vcpu.get_one_reg(regs.SVE_VLS))


def write_vls(vcpu: RegisterFile, vls: Iterable[int]) -> None:
    """Set a vCPU's vector lengths, after init and before finalize.

    A set must contain every length of the host up to its own largest.

    Raises: KvmError, for another set; ValueError, for an invalid vector length.
    """
    vcpu.set_one_reg(regs.SVE_VLS, bitmap(vls))


def bitmap(vls: Iterable[int]) -> int:
    """Return a set as KVM_REG_ARM64_SVE_VLS encodes it: bit n is the length (n + 1) * 128.

    Raises: ValueError, for an invalid vector length.
    """
    bits = 0
    for length in vls:
        if length % VQ_BITS or not VQ_BITS <= length <= MAX_BITS:
            raise ValueError(f"{length} is not a multiple of {VQ_BITS} up to {MAX_BITS}")
        bits |= 1 << (length // VQ_BITS - 1)
    return bits


def lengths(bits: int) -> frozenset[int]:
    """Return the set that such a bitmap encodes."""
    return frozenset((bit + 1) * VQ_BITS for bit in range(bits.bit_length()) if bits >> bit & 1)


def host_vector_lengths(system: System) -> frozenset[int]:
    """Return the vector lengths that the host can give a guest; none without SVE.

    A temporary vCPU, in a VM of its own, reports them.
    """
    if not system.has(Cap.ARM_SVE):
        return frozenset()
    with system.create_vm(MIN_IPA_BITS) as vm, vm.create_vcpu(0) as vcpu:
        vcpu.init(vm.preferred_target(), [VcpuFeature.SVE])
        return read_vls(vcpu)


def own_vector_lengths() -> OwnLengths:
    """Return the vector lengths of the host's own programs; none without SVE.

    A temporary thread tries each length: a vector length belongs to a thread.
    Source: Documentation/arch/arm64/sve.rst, "prctl() extensions".
    """
    from concurrent.futures import ThreadPoolExecutor  # imported lazily: rarely used

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_try_lengths).result()


def _try_lengths() -> OwnLengths:
    """Set this thread's vector length to each length: the kernel rounds down."""
    lib = native().lib
    prctl: set[int] = set()
    rdvl: set[int] = set()
    read = native().ffi.new("uint64_t *")
    limit = MAX_BITS
    while limit >= VQ_BITS:
        given = lib.pyvmm_sve_set_vl(limit // 8, read)
        if given == -errno.EINVAL:  # no SVE
            break
        if given < 0:
            raise HostError(f"prctl(PR_SVE_SET_VL, {limit // 8}): {os.strerror(-given)}")
        length = given * 8
        prctl.add(length)
        rdvl.add(int(read[0]) * 8)
        limit = min(length, limit) - VQ_BITS
    return OwnLengths(frozenset(prctl), frozenset(rdvl))
