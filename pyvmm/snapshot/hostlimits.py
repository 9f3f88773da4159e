"""The limits of a host's KVM: queried here, or read from the JSON that `pyvmm doctor` prints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from pyvmm.arm64 import sysregs
from pyvmm.base.documents import read_document
from pyvmm.base.records import made
from pyvmm.cpumodel.host import HOW, WHAT
from pyvmm.errors import KvmError
from pyvmm.kvm import native, regs
from pyvmm.kvm.system import System
from pyvmm.machine.board import read_limits
from pyvmm.machine.irqchip import NEEDS
from pyvmm.machine.plan import Feature, HostLimits, Plan
from pyvmm.machine.vcpus import make_vcpus
from pyvmm.snapshot import restoreorder
from pyvmm.snapshot.codec import read_hexadecimal

ENOUGH_IPA: Final = 40  # address bits of a VM that never runs
# Features that combine with any other.  The rest exclude something: the probed vCPU lacks them.
TOGETHER: Final = frozenset({Feature.PAUTH, Feature.PMU, Feature.PVTIME})


class RestoreLimits(HostLimits):
    """The limits of a host for a saved machine.

    ``registers`` are those of a vCPU with all features, ``writable`` the bits of ID registers that
    KVM lets a VMM change.
    """

    gics: frozenset[str]
    counter_hz: int
    registers: dict[int, int] = made(dict)
    writable: dict[int, int] = made(dict)


def limits_here(system: System) -> RestoreLimits:
    """Return this host's limits, without registers: the check writes those to KVM."""
    limits = read_limits(system)
    with system.create_vm(min(limits.ipa_bits, ENOUGH_IPA)) as vm:
        gics = {kind for kind, needs in NEEDS.items() if all(map(vm.has_device, needs))}
    hz = native.counter_frequency()
    return RestoreLimits(**vars(limits), gics=frozenset(gics), counter_hz=hz)


def registers_here(system: System) -> dict[str, str]:
    """Return the registers, by name, of a vCPU with all features of this host.

    SVE registers follow from the vector lengths, and every host has the core registers: both are
    left out.
    """
    limits = read_limits(system)
    ipa, features = min(limits.ipa_bits, ENOUGH_IPA), limits.features & TOGETHER
    plan = Plan(vcpus=1, memory=0, ipa_bits=ipa, vls=limits.vls, features=features)
    with ExitStack() as undo:
        vm = undo.enter_context(system.create_vm(plan.ipa_bits))
        (vcpu,) = make_vcpus(vm, plan, undo)
        ids = [i for i in vcpu.get_reg_list() if regs.group(i) not in (regs.CORE, regs.SVE)]
        found = vcpu.get_regs(ids)
    return {
        restoreorder.name(reg_id): f"{value:#x}"
        for reg_id, value in found.items()
        if not isinstance(value, KvmError)
    }


def writable_here(system: System) -> dict[str, str]:
    """Return the bits of ID registers, by name, that this host's KVM lets a VMM change."""
    with system.create_vm(min(read_limits(system).ipa_bits, ENOUGH_IPA)) as vm:
        masks = vm.writable_id_bits()
    return {restoreorder.name(reg_id): f"{mask:#x}" for reg_id, mask in masks.items()}


def read_limits_file(path: Path) -> RestoreLimits:
    """Return the limits in a file with the JSON that `pyvmm doctor` printed.

    Raises: UsageError, if it holds something else, or an older pyvmm wrote it.
    """
    return read_document(path, _from_document, WHAT, HOW)


def _from_document(document: Mapping[str, Any]) -> RestoreLimits:
    kvm = document["kvm"]
    names = {feature.name: feature for feature in Feature}
    return RestoreLimits(
        max_vcpus=int(kvm["vcpus_at_most"]),
        ipa_bits=int(kvm["guest_physical_address_bits"]),
        vls=frozenset(int(length) for length in kvm["sve_vector_lengths"]),
        features=frozenset(names[name] for name in kvm["cpu_features"].split(",") if name),
        gics=frozenset(
            kind
            for kind, keys in {
                "gicv2": ["gicv2"], "gicv3": ["gicv3"], "gicv3-its": ["gicv3", "gicv3_its"],
            }.items()
            if all(kvm[key] is True for key in keys)
        ),
        counter_hz=int(kvm["counter_hz"]),
        registers=_by_id(document["registers"]),
        writable=_by_id(document.get("writable_id_bits", {})),
    )  # fmt: skip


def _by_id(table: Mapping[str, str]) -> dict[int, int]:
    """Return registers by id."""
    return {
        regs.lookup(name, sysregs.ENCODINGS): read_hexadecimal(value)
        for name, value in table.items()
    }
