"""The interrupt controllers in the kernel: a GICv3, its ITS, or a GICv2."""

from __future__ import annotations

from typing import ClassVar, Self

from pyvmm.base.closing import Closing
from pyvmm.kvm.uapi import (
    DEV_ARM_VGIC_V3_MPIDR_SHIFT,
    DeviceType,
    VgicAddr,
    VgicCtrl,
    VgicGroup,
)
from pyvmm.kvm.vm import Vm


class Controller(Closing):
    """An interrupt controller of a VM; ``device`` has its attributes."""

    kind: ClassVar[DeviceType]

    def __init__(self, vm: Vm) -> None:
        self.device = vm.create_device(self.kind)

    def close(self) -> None:
        """Close the file descriptor; the controller stays with its VM."""
        self.device.close()

    def _initialise(self, *attributes: tuple[VgicGroup, int, int]) -> Self:
        """Set attributes (group, attribute, value) in order, then initialise the controller.

        From then on vCPUs, addresses and interrupts are fixed.
        """
        try:
            for attribute in attributes:
                self.device.set_attr(*attribute)
            self.device.set_attr(VgicGroup.CTRL, VgicCtrl.VGIC_CTRL_INIT)
        except BaseException:
            self.close()
            raise
        return self


class Vgic(Controller):
    """A VM's GICv3.

    The kernel requires this order: create every vCPU; create the GIC; set its addresses and number
    of interrupts; initialise it; run vCPUs. Registers are accessible only while no vCPU runs.
    Source: Documentation/virt/kvm/devices/arm-vgic-v3.rst.
    """

    kind = DeviceType.ARM_VGIC_V3

    @classmethod
    def create(
        cls,
        vm: Vm,
        *,
        distributor: int,
        redistributors: int,
        nr_irqs: int,
        maintenance_irq: int | None = None,
    ) -> Self:
        """Create and initialise a GIC, after all of the VM's vCPUs.

        Addresses are multiples of 64 KiB. ``redistributors`` is the address of the first
        redistributor; each has 128 KiB, in vCPU order. ``nr_irqs`` is the number of INTIDs: 64 to
        1024, a multiple of 32. ``maintenance_irq``, for guests in EL2, is the private interrupt of
        the virtual GIC's list registers.
        """
        attributes = [
            (VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_DIST, distributor),
            (VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_REDIST, redistributors),
            (VgicGroup.NR_IRQS, 0, nr_irqs),
        ]
        if maintenance_irq is not None:
            attributes.append((VgicGroup.MAINT_IRQ, 0, maintenance_irq))
        return cls(vm)._initialise(*attributes)

    def get_dist_reg(self, offset: int) -> int:
        """Read 32 bits of the distributor."""
        return self.device.get_attr(VgicGroup.DIST_REGS, offset)

    def get_redist_reg(self, mpidr: int, offset: int) -> int:
        """Read 32 bits of the redistributor of the vCPU with that MPIDR_EL1."""
        return self.device.get_attr(VgicGroup.REDIST_REGS, affinity(mpidr) | offset)

    def get_cpu_sysreg(self, mpidr: int, encoding: int) -> int:
        """Read an ICC_*_EL1 register of the vCPU with that MPIDR_EL1.

        ``encoding`` is what regs.encoding() returns.
        """
        return self.device.get_attr(VgicGroup.CPU_SYSREGS, affinity(mpidr) | encoding)


class VgicV2(Controller):
    """A VM's GICv2, on hosts with a GICv2 or a GICv3 that supports GICv2 guests.

    Source: Documentation/virt/kvm/devices/arm-vgic.rst.
    """

    kind = DeviceType.ARM_VGIC_V2

    @classmethod
    def create(cls, vm: Vm, *, distributor: int, cpu_interface: int, nr_irqs: int) -> Self:
        """Create and initialise a GIC, after all of the VM's vCPUs, at most 8."""
        return cls(vm)._initialise(
            (VgicGroup.ADDR, VgicAddr.V2_ADDR_TYPE_DIST, distributor),
            (VgicGroup.ADDR, VgicAddr.V2_ADDR_TYPE_CPU, cpu_interface),
            (VgicGroup.NR_IRQS, 0, nr_irqs),
        )


class Its(Controller):
    """The interrupt translation service of a VM with a GICv3.

    Source: Documentation/virt/kvm/devices/arm-vgic-its.rst.
    """

    kind = DeviceType.ARM_VGIC_ITS

    @classmethod
    def create(cls, vm: Vm, *, base: int) -> Self:
        """Create and initialise an ITS at a multiple of 64 KiB, after the GICv3."""
        return cls(vm)._initialise((VgicGroup.ADDR, VgicAddr.ITS_ADDR_TYPE, base))


def affinity(mpidr: int) -> int:
    """Return an MPIDR_EL1 value as the upper half of a GIC attribute: Aff3.Aff2.Aff1.Aff0."""
    aff3 = mpidr >> 32 & 0xFF
    return (aff3 << 24 | mpidr & 0x00FF_FFFF) << DEV_ARM_VGIC_V3_MPIDR_SHIFT
