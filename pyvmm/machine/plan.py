"""Check a Config against the host's limits, before the VM is made."""

from __future__ import annotations

from enum import Enum

from pyvmm import layout
from pyvmm.arm64 import vl
from pyvmm.base.records import Record
from pyvmm.base.units import show_cpulist, show_size
from pyvmm.config import Config, SveRequest, default_memory, default_vcpus
from pyvmm.errors import HostError

DEFAULT_IPA_BITS = 40  # if KVM lacks KVM_CAP_ARM_VM_IPA_SIZE
GICV2_VCPUS = 8  # a GICv2 names CPUs by bits of a byte.  Source: Arm IHI 0048, GICD_ITARGETSR


class Feature(Enum):
    """A feature of vCPUs that a host's KVM may have."""

    PAUTH = "pointer authentication"
    PMU = "performance monitor"
    MTE = "memory tags"
    PVTIME = "stolen time"
    EL2 = "EL2"
    E2H0 = "EL2 without VHE"
    AARCH32 = "32-bit state in EL1"


# The features that fields of CpuRequest ask for, why a host may lack each, and one that has it.
REQUESTS = {
    "pmu": (Feature.PMU, "its kernel drives no PMU", "`host`=emulated"),
    "nested": (Feature.EL2, "that needs Linux v6.16 with kvm-arm.mode=nested, and a CPU with "
               "FEAT_NV2", "`host.model`=nested"),
    "e2h0": (Feature.E2H0, "that needs a CPU with FEAT_E2H0", "`host.model`=nested"),
    "aarch32": (Feature.AARCH32, "its CPUs run guest kernels in AArch64 only",
                "`host.model`=max"),
}  # fmt: skip


class HostLimits(Record, kw_only=True):
    """The limits of KVM on a host for one VM; ``vls`` are its SVE vector lengths in bits.

    ``cpus`` are the online CPUs; the set is empty if they are unknown.
    """

    max_vcpus: int
    ipa_bits: int
    vls: vl.VlSet
    features: frozenset[Feature] = frozenset()
    cpus: frozenset[int] = frozenset()


class Plan(Record, kw_only=True):
    """A Config with every default filled in, within a host's limits.

    ``windows`` are the guest physical addresses above RAM of each of the Config's devices.
    """

    vcpus: int
    memory: int
    ipa_bits: int
    vls: vl.VlSet
    features: frozenset[Feature] = frozenset()
    windows: tuple[layout.Region, ...] = ()
    vmgenid: bool = False


def plan(config: Config, host: HostLimits) -> Plan:
    """Fill in the defaults of ``config``, and check it against the host's limits.

    Raises: HostError, which names the limit and a value within it.
    """
    vls = frozenset() if config.cpu.aarch32 else choose(config.sve, host.vls)
    vcpus = _vcpus(config, min(host.max_vcpus, _most_vcpus(config)))
    memory = default_memory(vcpus) if config.memory is None else config.memory
    windows = layout.windows(
        (device.window_size() for device in config.devices), config.ram_base + memory
    )
    _check_affinity(config, host)
    return Plan(
        vcpus=vcpus,
        memory=memory,
        ipa_bits=_ipa_bits(config, memory, windows, host),
        vls=vls,
        features=_features(config, host.features),
        windows=windows,
        vmgenid=config.vmgenid,
    )


def choose(request: SveRequest, host: vl.VlSet) -> vl.VlSet:
    """Return a machine's vector lengths on a host with those lengths; the empty set means no SVE.

    Raises: HostError, if the host cannot give them.
    """
    if request.off:
        return vl.NO_SVE
    if not host:
        if wanted := request.wanted:
            raise HostError(
                f"{wanted}: this host has no SVE",
                hint=f"leave {wanted.partition('=')[0]} out; or run where there is SVE "
                "(an emulated host has it: `host`=emulated `host.cpu`=max)",
            )
        return vl.NO_SVE
    if request.vls is not None:
        check(request.vls, host)
        return request.vls
    if request.max_vl is not None:
        return vl.up_to(host, request.max_vl)
    return host


def check(asked: vl.VlSet, host: vl.VlSet) -> None:
    """Check that KVM on a host with those lengths accepts the set.

    Raises: HostError, with the reason and the nearest sets that KVM accepts.
    """
    if reason := vl.why_not(asked, host):
        raise HostError(
            f"`sve.vls`={vl.show(asked)}: {reason}", hint=vl.advice(asked, host, "`sve.vls`")
        )


def room_for_vcpus() -> int:
    """Return how many redistributors fit, beside an ITS, below the distributor."""
    floor = layout.virtio(layout.VIRTIO_COUNT - 1).end + layout.ITS_SIZE
    return (layout.GICD.base - floor) // layout.GICR_SIZE


def most_memory(ipa_bits: int, ram_base: int = layout.RAM_BASE) -> int:
    """Return the largest RAM in bytes for that many guest physical address bits."""
    return max(0, (1 << ipa_bits) - ram_base)


def _most_vcpus(config: Config) -> int:
    return GICV2_VCPUS if config.irqchip == "gicv2" else room_for_vcpus()


def _vcpus(config: Config, limit: int) -> int:
    if config.vcpus is None:
        return default_vcpus(limit)
    if config.vcpus > limit:
        raise HostError(
            f"`vcpus`={config.vcpus}: this host gives one VM at most {limit} vCPUs"
            + (" with a GICv2" if limit == _most_vcpus(config) == GICV2_VCPUS else ""),
            hint=f"use `vcpus`={limit} or less",
        )
    return config.vcpus


def _ipa_bits(
    config: Config, memory: int, windows: tuple[layout.Region, ...], host: HostLimits
) -> int:
    needed = layout.ipa_bits(memory, config.ram_base)
    if needed <= host.ipa_bits:
        for device, window in zip(config.devices, windows, strict=True):
            if window.end > 1 << host.ipa_bits:
                raise HostError(
                    f"{device}: {show_size(window.size)} at {window.base:#x}, above RAM, need "
                    f"{(window.end - 1).bit_length()} guest physical address bits, and this host "
                    f"has {host.ipa_bits}",
                    hint="use a smaller device, or a smaller `memory`",
                )
            needed = max(needed, (window.end - 1).bit_length())
    if needed > host.ipa_bits:
        most = most_memory(host.ipa_bits, config.ram_base)
        enough = f"use `memory`={most >> 30}G or less" if most >> 30 else "let RAM start lower"
        raise HostError(
            f"`memory`: {show_size(memory)} of RAM needs {needed} guest physical address bits, "
            f"and this host has {host.ipa_bits}",
            hint=f"{enough} (RAM starts at {config.ram_base:#x})",
        )
    return needed


def _check_affinity(config: Config, host: HostLimits) -> None:
    asked = config.vcpu_affinity
    if asked is not None and host.cpus and not asked <= host.cpus:
        raise HostError(
            f"`vcpu_affinity`={show_cpulist(asked)}: this host has no CPU "
            f"{show_cpulist(asked - host.cpus)}",
            hint=f"online are {show_cpulist(host.cpus)}",
        )


def _features(config: Config, has: frozenset[Feature]) -> frozenset[Feature]:
    """Choose the vCPUs' features among those of the host."""
    given = set()
    for field, (feature, reason, elsewhere) in REQUESTS.items():
        if getattr(config.cpu, field):
            if feature not in has:
                raise HostError(
                    f"`cpu.{field}`: this host's KVM gives guests no {feature.value}: {reason}",
                    hint=f"an emulated host has it: {elsewhere}",
                )
            given.add(feature)
    if config.cpu.aarch32:  # KVM gives the others only to 64-bit guests
        return frozenset(given)
    if config.cpu.pauth:
        given |= {Feature.PAUTH} & has
    if config.cpu.pvtime:
        given |= {Feature.PVTIME} & has
    # KVM refuses pages without tags as memory of a guest that has tags.  Pages of hugetlbfs hold
    # tags since Linux v6.13, pages of files never.
    untagged = config.hugetlbfs is not None or any(d.maps_file for d in config.devices)
    if config.cpu.mte and not untagged:
        given |= {Feature.MTE} & has
    return frozenset(given)
