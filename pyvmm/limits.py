"""What a host can give, and what of it a machine takes: every refusal before the VM exists."""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm import layout
from pyvmm.arm64 import vl
from pyvmm.config import Config, default_memory, default_vcpus
from pyvmm.errors import HostError
from pyvmm.units import show_size

DEFAULT_IPA_BITS = 40  # what KVM offers where it has no KVM_CAP_ARM_VM_IPA_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """What KVM on a host offers one VM; ``vls`` is its SVE vector lengths in bits."""

    max_vcpus: int
    ipa_bits: int
    vls: vl.VlSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a Config comes to on a host: nothing left open, everything within its limits."""

    vcpus: int
    memory: int
    ipa_bits: int
    vls: vl.VlSet


def plan(config: Config, host: HostLimits) -> Plan:
    """Decide what ``config`` leaves open, and check what it asks against the host.

    Raises: HostError, naming the limit and what would be within it.
    """
    vls = vl.choose(config.sve, host.vls)
    vcpus = _vcpus(config, min(host.max_vcpus, room_for_vcpus()))
    memory = default_memory(vcpus) if config.memory is None else config.memory
    return Plan(vcpus=vcpus, memory=memory, ipa_bits=_ipa_bits(memory, host), vls=vls)


def room_for_vcpus() -> int:
    """How many vCPUs' redistributors (and an ITS) fit between virtio-mmio and the distributor."""
    floor = layout.virtio(layout.VIRTIO_COUNT - 1).end + layout.ITS_SIZE
    return (layout.GICD.base - floor) // layout.GICR_SIZE


def most_memory(ipa_bits: int) -> int:
    """The most RAM a guest with that many physical address bits can have, in bytes."""
    return max(0, (1 << ipa_bits) - layout.RAM_BASE)


def _vcpus(config: Config, limit: int) -> int:
    if config.vcpus is None:
        return default_vcpus(limit)
    if config.vcpus > limit:
        raise HostError(
            f"-c {config.vcpus}: this host gives one VM at most {limit} vCPUs",
            hint=f"use -c {limit} or less",
        )
    return config.vcpus


def _ipa_bits(memory: int, host: HostLimits) -> int:
    needed = layout.ipa_bits(memory)
    if needed > host.ipa_bits:
        most = most_memory(host.ipa_bits)
        raise HostError(
            f"-m: {show_size(memory)} of RAM needs {needed} guest physical address bits, "
            f"and this host has {host.ipa_bits}",
            hint=f"use -m {most >> 30}G or less (RAM starts at {layout.RAM_BASE:#x})",
        )
    return needed
