"""The interrupt controller of a machine: the requested one, or the host's best."""

from __future__ import annotations

from contextlib import ExitStack

from pyvmm import layout
from pyvmm.base.records import Record
from pyvmm.config import Config
from pyvmm.errors import HostError
from pyvmm.kvm.uapi import DeviceType
from pyvmm.kvm.vgic import Its, Vgic, VgicV2
from pyvmm.kvm.vm import Vm

# The KVM devices that each interrupt controller needs
NEEDS = {
    "gicv3": (DeviceType.ARM_VGIC_V3,),
    "gicv3-its": (DeviceType.ARM_VGIC_V3, DeviceType.ARM_VGIC_ITS),
    "gicv2": (DeviceType.ARM_VGIC_V2,),
}
# The best first, as in lkvm. No device of pyvmm sends an ITS messages yet, but a guest can send
# them itself, and an unused ITS costs nothing that can be measured: docs/benchmarks.md.
BY_DEFAULT = ("gicv3-its", "gicv3", "gicv2")


class Irqchip(Record):
    """The interrupt controller; ``name`` is one of the values of Config's ``irqchip``."""

    name: str
    gic: Vgic | VgicV2
    its: Its | None = None


def make_irqchip(vm: Vm, name: str, config: Config, vcpus: int, undo: ExitStack) -> Irqchip:
    """Make the interrupt controller of that name, after the VM's vCPUs."""
    if name == "gicv2":
        v2 = VgicV2.create(
            vm,
            distributor=layout.GICD.base,
            cpu_interface=layout.GICC.base,
            nr_irqs=layout.NR_IRQS,
        )
        return Irqchip(name, undo.enter_context(v2))
    gic = Vgic.create(
        vm,
        distributor=layout.GICD.base,
        redistributors=layout.gicr(vcpus).base,
        nr_irqs=layout.NR_IRQS,
        maintenance_irq=layout.FIRST_PPI + layout.PPI_GIC_MAINTENANCE
        if config.cpu.nested
        else None,
    )
    undo.enter_context(gic)
    if name == "gicv3":
        return Irqchip(name, gic)
    its = undo.enter_context(Its.create(vm, base=layout.its(vcpus).base))
    return Irqchip(name, gic, its)


def choose_irqchip(vm: Vm, config: Config) -> str:
    """Return the name of the interrupt controller to make; the VM may still be empty.

    Raises: HostError, if the host's KVM lacks the requested one.
    """
    asked = BY_DEFAULT if config.irqchip is None else (config.irqchip,)
    for name in asked:
        if all(vm.has_device(device) for device in NEEDS[name]):
            return name
    field = f"`irqchip`={config.irqchip}: " if config.irqchip else ""
    has = [name for name, needs in NEEDS.items() if all(map(vm.has_device, needs))]
    raise HostError(
        f"{field}Failed to create virtual GIC: this host's KVM has no {' and no '.join(asked)}",
        hint=f"use one of {', '.join(has)}" if has else "run dmesg | grep -i vgic for the reason",
    )
