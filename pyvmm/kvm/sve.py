"""The vector lengths of SVE: what the host has, and what a vCPU gets.  All lengths are in bits."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable

from pyvmm.base.records import Record
from pyvmm.errors import HostError
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.native import native
from pyvmm.kvm.regs import RegisterFile
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import VcpuFeature

MIN_IPA_BITS = 32  # a VM of this size every host can make
VQ_BITS = 128  # the unit of a vector length.  Source: asm/sve_context.h
MAX_BITS = 512 * VQ_BITS  # as far as KVM_REG_ARM64_SVE_VLS reaches, and PR_SVE_SET_VL


class OwnLengths(Record):
    """The vector lengths of the host's own programs, from two witnesses: they are to agree."""

    prctl: frozenset[int]  # what PR_SVE_SET_VL says it gave
    rdvl: frozenset[int]  # what the instruction RDVL then reads


def read_vls(vcpu: RegisterFile) -> frozenset[int]:
    """Return the vector lengths a vCPU has (with SVE, initialised)."""
    return lengths(vcpu.get_one_reg(regs.SVE_VLS))


def write_vls(vcpu: RegisterFile, vls: Iterable[int]) -> None:
    """Choose a vCPU's vector lengths, after init and before finalize.

    KVM takes a set only if it holds every length of the host's up to its own largest.
    Raises KvmError for another set, ValueError for what is no vector length at all.
    """
    vcpu.set_one_reg(regs.SVE_VLS, bitmap(vls))


def bitmap(vls: Iterable[int]) -> int:
    """Return a set as KVM_REG_ARM64_SVE_VLS encodes it: bit n is the length (n + 1) * 128.

    Raises ValueError for what is no vector length at all.
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
    """Return the vector lengths the host can give a guest; none when it has no SVE.

    Asked of a vCPU made for the purpose, in a VM of its own that ends with the call.
    """
    if not system.has(Cap.ARM_SVE):
        return frozenset()
    with system.create_vm(MIN_IPA_BITS) as vm, vm.create_vcpu(0) as vcpu:
        vcpu.init(vm.preferred_target(), [VcpuFeature.SVE])
        return read_vls(vcpu)


def own_vector_lengths() -> OwnLengths:
    """Return the vector lengths of the host's own programs; none without SVE.

    Tried one after the other by a thread made for it: a vector length is a thread's own.
    Source: Documentation/arch/arm64/sve.rst, "prctl() extensions".
    """
    found: list[OwnLengths | BaseException] = []

    def probe() -> None:
        try:
            found.append(_try_lengths())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=probe, name="vector lengths")
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, BaseException):
        raise result
    return result


def _try_lengths() -> OwnLengths:
    """Set this thread's vector length to each there is: the kernel goes down to the next."""
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
