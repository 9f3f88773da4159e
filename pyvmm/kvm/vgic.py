"""The interrupt controllers in the kernel: a GICv3, its ITS, or a GICv2."""

from __future__ import annotations

from pyvmm.kvm.device import Device
from pyvmm.kvm.uapi import DeviceType, VgicAddr, VgicCtrl, VgicField, VgicGroup
from pyvmm.kvm.vm import Vm


class Vgic:
    """A VM's GICv3, initialised step by step or, with create(), at once.

    The kernel requires this order: create every vCPU; create the GIC; set its addresses and number
    of interrupts; init(); run vCPUs. Registers are accessible only while no vCPU runs.
    Source: Documentation/virt/kvm/devices/arm-vgic-v3.rst.
    """

    def __init__(self, vm: Vm) -> None:
        self.device: Device = vm.create_device(DeviceType.ARM_VGIC_V3)

    @classmethod
    def create(
        cls,
        vm: Vm,
        *,
        distributor: int,
        redistributors: int,
        nr_irqs: int,
        maintenance_irq: int | None = None,
    ) -> Vgic:
        """Create and initialise a GIC, after all of the VM's vCPUs.

        ``redistributors`` is the address of the first vCPU's; each has 128 KiB, in vCPU order.
        ``nr_irqs`` is the number of INTIDs: 64 to 1024, a multiple of 32. ``maintenance_irq``, for
        guests in EL2, is the private interrupt of the virtual GIC's list registers.
        """
        vgic = cls(vm)
        try:
            vgic.place(distributor, redistributors)
            vgic.device.set_attr(VgicGroup.NR_IRQS, 0, nr_irqs)
            if maintenance_irq is not None:
                vgic.device.set_attr(VgicGroup.MAINT_IRQ, 0, maintenance_irq)
            vgic.init()
        except BaseException:
            vgic.close()
            raise
        return vgic

    def close(self) -> None:
        """Close the file descriptor; the GIC stays with its VM."""
        self.device.close()

    def place(self, distributor: int, redistributors: int) -> None:
        """Set the guest physical addresses, multiples of 64 KiB."""
        self.device.set_attr(VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_DIST, distributor)
        self.device.set_attr(VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_REDIST, redistributors)

    def init(self) -> None:
        """Initialise the GIC: vCPUs, addresses and interrupts become fixed."""
        self.device.set_attr(VgicGroup.CTRL, VgicCtrl.VGIC_CTRL_INIT)

    # Registers; ``mpidr`` is the vCPU's MPIDR_EL1.

    def get_dist_reg(self, offset: int) -> int:
        """Read 32 bits of the distributor."""
        return self.device.get_attr(VgicGroup.DIST_REGS, offset)

    def set_dist_reg(self, offset: int, value: int) -> None:
        """Write 32 bits of the distributor, with user space's semantics, not a guest's."""
        self.device.set_attr(VgicGroup.DIST_REGS, offset, value)

    def get_redist_reg(self, mpidr: int, offset: int) -> int:
        """Read 32 bits of a vCPU's redistributor."""
        return self.device.get_attr(VgicGroup.REDIST_REGS, affinity(mpidr) | offset)

    def set_redist_reg(self, mpidr: int, offset: int, value: int) -> None:
        """Write 32 bits of a vCPU's redistributor."""
        self.device.set_attr(VgicGroup.REDIST_REGS, affinity(mpidr) | offset, value)

    def get_cpu_sysreg(self, mpidr: int, encoding: int) -> int:
        """Read an ICC_*_EL1 register of a vCPU; ``encoding`` is regs.encoding()'s."""
        return self.device.get_attr(VgicGroup.CPU_SYSREGS, affinity(mpidr) | encoding)

    def set_cpu_sysreg(self, mpidr: int, encoding: int, value: int) -> None:
        """Write an ICC_*_EL1 register of a vCPU."""
        self.device.set_attr(VgicGroup.CPU_SYSREGS, affinity(mpidr) | encoding, value)

    def get_line_level(self, mpidr: int, intid: int) -> int:
        """Return the input lines of 32 interrupts from ``intid``, a multiple of 32."""
        return self.device.get_attr(VgicGroup.LEVEL_INFO, affinity(mpidr) | intid)

    def set_line_level(self, mpidr: int, intid: int, lines: int) -> None:
        """Set the input lines of 32 interrupts."""
        self.device.set_attr(VgicGroup.LEVEL_INFO, affinity(mpidr) | intid, lines)


class VgicV2:
    """A VM's GICv2, on hosts with a GICv2 or a GICv3 that supports GICv2 guests.

    Source: Documentation/virt/kvm/devices/arm-vgic.rst.
    """

    def __init__(self, vm: Vm) -> None:
        self.device: Device = vm.create_device(DeviceType.ARM_VGIC_V2)

    @classmethod
    def create(cls, vm: Vm, *, distributor: int, cpu_interface: int, nr_irqs: int) -> VgicV2:
        """Create and initialise a GIC, after all of the VM's vCPUs, at most 8."""
        vgic = cls(vm)
        try:
            set_attr = vgic.device.set_attr
            set_attr(VgicGroup.ADDR, VgicAddr.V2_ADDR_TYPE_DIST, distributor)
            set_attr(VgicGroup.ADDR, VgicAddr.V2_ADDR_TYPE_CPU, cpu_interface)
            set_attr(VgicGroup.NR_IRQS, 0, nr_irqs)
            set_attr(VgicGroup.CTRL, VgicCtrl.VGIC_CTRL_INIT)
        except BaseException:
            vgic.close()
            raise
        return vgic

    def close(self) -> None:
        """Close the file descriptor; the GIC stays with its VM."""
        self.device.close()


class Its:
    """The interrupt translation service of a VM with a GICv3.

    Source: Documentation/virt/kvm/devices/arm-vgic-its.rst.
    """

    def __init__(self, vm: Vm) -> None:
        self.device: Device = vm.create_device(DeviceType.ARM_VGIC_ITS)

    @classmethod
    def create(cls, vm: Vm, *, base: int) -> Its:
        """Create and initialise an ITS at a multiple of 64 KiB, after the GICv3."""
        service = cls(vm)
        try:
            service.device.set_attr(VgicGroup.ADDR, VgicAddr.ITS_ADDR_TYPE, base)
            service.device.set_attr(VgicGroup.CTRL, VgicCtrl.VGIC_CTRL_INIT)
        except BaseException:
            service.close()
            raise
        return service

    def close(self) -> None:
        """Close the file descriptor; the ITS stays with its VM."""
        self.device.close()


def affinity(mpidr: int) -> int:
    """Return an MPIDR_EL1 value as the upper half of a GIC attribute: Aff3.Aff2.Aff1.Aff0."""
    aff3 = mpidr >> 32 & 0xFF
    return (aff3 << 24 | mpidr & 0x00FF_FFFF) << VgicField.V3_MPIDR_SHIFT
