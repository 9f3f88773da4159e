"""Facts about a computer and its KVM: what it has, what it lacks, and how to get that."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyvmm.arm64 import cpuid
from pyvmm.base.computer import kind_of_machine, small_text
from pyvmm.base.records import Record
from pyvmm.base.units import show_size
from pyvmm.errors import KvmError, VmmError
from pyvmm.kvm import native
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import DeviceType
from pyvmm.machine.board import read_limits
from pyvmm.machine.devices import MAKERS
from pyvmm.machine.plan import GICV2_VCPUS, most_memory
from pyvmm.machine.vcpus import host_features

# Topics for programs: the registers of a vCPU with every feature, and the bits of ID registers that
# KVM lets a VMM change
REGISTERS, WRITABLE = "registers", "writable_id_bits"
Value = str | int | bool | list[int] | None

MIDR = Path("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Fact(Record):
    """A fact about a machine; ``lack`` says what is missing, ``remedy`` how to get it.

    ``shown`` is the value for people, if that is not the value itself. A ``fatal`` lack means that
    no VM can run.
    """

    topic: str
    name: str
    value: Value
    lack: str = ""
    remedy: str = ""
    fatal: bool = False
    shown: str = ""

    @property
    def key(self) -> str:
        """The name in JSON: capabilities and registers keep theirs."""
        if self.name.isupper() or self.topic == REGISTERS:
            return self.name
        return re.sub("[^a-z0-9]+", "_", self.name.lower()).strip("_")

    @classmethod
    def of_error(cls, topic: str, name: str, error: VmmError, *, fatal: bool = True) -> Fact:
        """Return the fact that something failed."""
        return cls(topic, name, None, error.message, error.hint or "", fatal)

    def as_json(self) -> dict[str, Any]:
        """Return the fact for another process."""
        return asdict(self)


def machine_facts(topic: str = "machine") -> Iterator[Fact]:
    """Yield facts about this computer and its kernel."""
    yield Fact(topic, "architecture", platform.machine())
    if kind := kind_of_machine():
        yield Fact(topic, "kind", kind)
    yield Fact(topic, "processor", processor())
    yield Fact(topic, "CPUs online", os.sysconf("SC_NPROCESSORS_ONLN"))
    page = os.sysconf("SC_PAGE_SIZE")
    memory = os.sysconf("SC_PHYS_PAGES") * page
    yield Fact(topic, "memory", memory, shown=f"{memory >> 20} MiB")
    yield Fact(topic, "page size", page, shown=show_size(page))
    yield Fact(topic, "kernel", f"Linux {platform.release()}")


def huge_pages(setting: Path = HUGE_PAGES) -> Fact:
    """Check whether guest memory gets the transparent huge pages that it asks for.

    Source: Linux, Documentation/admin-guide/mm/transhuge.rst, "sysfs".
    """
    found = re.search(r"\[(\w+)\]", small_text(setting))
    fact = Fact("kvm", "transparent huge pages", found[1] if found else "none")
    if fact.value in ("always", "madvise"):
        return fact
    return fact.replace(
        lack="guest memory has no huge pages: the host handles a page fault for every small page",
        remedy=f"echo madvise >{setting}" if found else "",
    )


def kvm_facts(system: System) -> Iterator[Fact]:
    """Yield facts about this machine's KVM."""
    yield Fact("kvm", "API version", system.get_api_version())
    yield from _limits(system)
    yield from _gics(system)
    yield Fact("kvm", "CPU features", ",".join(sorted(f.name for f in host_features(system))))
    yield Fact("kvm", "counter Hz", native.counter_frequency())
    yield _devices(system)
    yield from _capabilities(system)


def _limits(system: System) -> Iterator[Fact]:
    limits = read_limits(system)
    yield Fact("kvm", "vCPUs at most", limits.max_vcpus)
    yield Fact("kvm", "vCPUs recommended", system.check_extension(Cap.NR_VCPUS))
    yield Fact("kvm", "guest physical address bits", limits.ipa_bits)
    memory = most_memory(limits.ipa_bits)
    yield Fact("kvm", "guest RAM at most", memory, shown=f"{memory >> 30} GiB")
    yield huge_pages()
    lengths = Fact("kvm", "SVE vector lengths", sorted(limits.vls))
    yield (
        lengths
        if limits.vls
        else lengths.replace(
            lack="the host has no SVE (or its kernel was started with arm64.nosve)",
            remedy="an emulated host has it: `host`=emulated `host.cpu`=max",
        )
    )


def _gics(system: System) -> Iterator[Fact]:
    """Make each interrupt controller in a VM of its own, to see which ones work."""
    found = {}
    for kind in (DeviceType.ARM_VGIC_V2, DeviceType.ARM_VGIC_V3, DeviceType.ARM_VGIC_ITS):
        try:
            with system.create_vm() as vm, vm.create_device(kind):
                found[kind] = True
        except KvmError:
            found[kind] = False
    yield Fact("kvm", "GICv2", found[DeviceType.ARM_VGIC_V2])
    yield gicv3_fact(found[DeviceType.ARM_VGIC_V3], v2=found[DeviceType.ARM_VGIC_V2])
    yield Fact("kvm", "GICv3 ITS", found[DeviceType.ARM_VGIC_ITS])


def gicv3_fact(has: bool, *, v2: bool) -> Fact:
    """Return whether KVM can make a GICv3, and what its lack means: guests run with a GICv2 too."""
    fact = Fact("kvm", "GICv3", has)
    if has:
        return fact
    if v2:
        return fact.replace(
            lack=f"this machine has a GICv2: a VM has at most {GICV2_VCPUS} vCPUs, and no ITS",
            remedy="an emulated host has a GICv3: `host`=emulated",
        )
    return fact.replace(
        lack="this machine's KVM has neither a GICv3 nor a GICv2, and a guest needs one",
        remedy="run dmesg | grep -i vgic for the reason; or run with `host`=emulated",
        fatal=True,
    )


def _devices(system: System) -> Fact:
    """Name the virtio devices that a guest can have; each signals its interrupt by an irqfd."""
    kinds = sorted(["console", *(kind.__name__.lower() for kind in MAKERS)])
    missing = [cap.name for cap in (Cap.IRQFD, Cap.IOEVENTFD) if not system.has(cap)]
    lack = f"this host's KVM lacks {' and '.join(missing)}, which they need" if missing else ""
    return Fact("kvm", "virtio devices", "" if missing else ", ".join(kinds), lack)


def _capabilities(system: System) -> Iterator[Fact]:
    """Yield the value of every capability of a VM."""
    with system.create_vm() as vm:
        for cap in Cap:
            yield Fact("capabilities", cap.name, vm.check_extension(cap))


def processor() -> str:
    """Return the CPU's name, or on arm64 its maker and numbers."""
    midr = small_text(MIDR)
    if midr:
        return cpuid.describe(int(midr, 16))
    for line in small_text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"
