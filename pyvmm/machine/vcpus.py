"""The vCPUs of a machine: features, vector lengths, and the boot CPU's registers.

Source: Linux, Documentation/virt/kvm/api.rst, KVM_ARM_VCPU_INIT, and virt/kvm/devices/vcpu.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pyvmm import layout
from pyvmm.arm64 import vl
from pyvmm.base.units import parse_cpulist
from pyvmm.boot.image import LoadedImage
from pyvmm.errors import HostError
from pyvmm.kvm import regs, sve
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm
from pyvmm.machine.plan import Feature, Plan
from pyvmm.machine.registers import RegisterView
from pyvmm.machine.slots import MemorySlots
from pyvmm.memory.ram import GuestMemory

# KVM has a feature if it has all of these capabilities
CAPS: dict[Feature, tuple[Cap, ...]] = {
    Feature.PAUTH: (Cap.ARM_PTRAUTH_ADDRESS, Cap.ARM_PTRAUTH_GENERIC),
    Feature.PMU: (Cap.ARM_PMU_V3,),
    Feature.MTE: (Cap.ARM_MTE,),
    Feature.PVTIME: (Cap.STEAL_TIME,),
    Feature.EL2: (Cap.ARM_EL2,),
    Feature.E2H0: (Cap.ARM_EL2_E2H0,),
    Feature.AARCH32: (Cap.ARM_EL1_32BIT,),
}
# The flags of KVM_ARM_VCPU_INIT for a feature; MTE and stolen time need other calls
INIT: dict[Feature, tuple[VcpuFeature, ...]] = {
    Feature.PAUTH: (VcpuFeature.PTRAUTH_ADDRESS, VcpuFeature.PTRAUTH_GENERIC),
    Feature.PMU: (VcpuFeature.PMU_V3,),
    Feature.EL2: (VcpuFeature.HAS_EL2,),
    Feature.E2H0: (VcpuFeature.HAS_EL2_E2H0,),
    Feature.AARCH32: (VcpuFeature.EL1_32BIT,),
}

# PSTATE of a boot CPU: D, A, I and F masked, and EL1h, EL2h or 32-bit Supervisor mode.
# Source: Linux, Documentation/arch/arm64/booting.rst, "CPU mode"; arch/arm/booting.rst, 5.
BOOT_PSTATE = 0x3C5
BOOT_PSTATE_EL2 = 0x3C9
BOOT_PSTATE_32 = 0xD3
# Data at the exception level is big-endian.  Source: Arm ARM DDI 0487, SCTLR_EL1.EE, SCTLR_EL2.EE
SCTLR_EE = 1 << 25
SCTLR_EL1 = regs.sysreg(3, 0, 1, 0, 0)
SCTLR_EL2 = regs.sysreg(3, 4, 1, 0, 0)
CNTVOFF_EL2 = regs.sysreg(3, 4, 14, 0, 3)
# R1 of a 32-bit kernel with a device tree.  Source: as above
NO_MACHINE_TYPE = 0xFFFF_FFFF

ONLINE = Path("/sys/devices/system/cpu/online")


class MachineVcpu(Vcpu, RegisterView):
    """A vCPU of a machine: KVM's vCPU, with registers by name as typed values."""


def host_features(system: System) -> frozenset[Feature]:
    """Return the features that the host's KVM has."""
    return frozenset(
        feature for feature, caps in CAPS.items() if all(system.has(cap) for cap in caps)
    )


def online_cpus() -> frozenset[int]:
    """Return the online CPUs of this machine; none if unknown."""
    try:
        return parse_cpulist(ONLINE.read_text(encoding="ascii"))
    except OSError:
        return frozenset()


def features_of(decided: Plan) -> frozenset[VcpuFeature]:
    """Return the flags of KVM_ARM_VCPU_INIT for a machine's vCPUs."""
    features = {VcpuFeature.PSCI_0_2}
    for feature in decided.features:
        features.update(INIT.get(feature, ()))
    if decided.vls:
        features.add(VcpuFeature.SVE)
    return frozenset(features)


def make_vcpus(vm: Vm, decided: Plan, undo: ExitStack) -> list[MachineVcpu]:
    """Make every vCPU, with the same features and vector lengths; all but the first are off."""
    features = features_of(decided)
    target = vm.preferred_target()
    vcpus: list[MachineVcpu] = []
    for number in range(decided.vcpus):
        vcpu = undo.enter_context(vm.create_vcpu(number, MachineVcpu))
        vcpu.init(target, features | {VcpuFeature.POWER_OFF} if number else features)
        if decided.vls:
            _set_vector_lengths(vcpu, decided.vls)
        vcpus.append(vcpu)
    return vcpus


def _set_vector_lengths(vcpu: Vcpu, vls: vl.VlSet) -> None:
    """Set a vCPU's vector lengths, and check that KVM reads back the same set."""
    sve.write_vls(vcpu, vls)
    vcpu.finalize(VcpuFeature.SVE)
    taken = sve.read_vls(vcpu)
    if taken != vls:
        raise HostError(
            f"vCPU {vcpu.id} was set to the vector lengths {vl.show(vls)}, "
            f"but KVM reads back {vl.show(taken) or 'none'}"
        )


def init_pmus(vcpus: Sequence[Vcpu], decided: Plan) -> None:
    """Initialize the PMUs, if there are any; after the interrupt controller."""
    if Feature.PMU in decided.features:
        for vcpu in vcpus:
            vcpu.init_pmu(layout.FIRST_PPI + layout.PPI_PMU)


def make_pvtime(
    vcpus: Sequence[Vcpu], decided: Plan, slots: MemorySlots, undo: ExitStack
) -> GuestMemory | None:
    """Make the memory in which KVM reports the stolen time of each vCPU.

    Source: Arm DEN 0057, "Paravirtualized time".
    """
    if Feature.PVTIME not in decided.features:
        return None
    region = layout.PVTIME
    memory = undo.enter_context(GuestMemory(region.base, region.size))
    slots.add(region.name, memory.base, memory.size, memory.host_address)
    slots.save(region.name, memory)
    for vcpu in vcpus:
        vcpu.set_pvtime(region.base + vcpu.id * layout.PVTIME_SIZE)
    return memory


def read_counter(vcpu: Vcpu, decided: Plan) -> int:
    """Return the virtual counter of the VM, as a write to TIMER_CNT sets it.

    KVM reads TIMER_CNT as the vCPU's EL1 sees it: a guest hypervisor that runs a guest has moved it
    by CNTVOFF_EL2.  A write sets the counter without that offset.
    Source: Linux, arch/arm64/kvm/arch_timer.c, timer_get_offset() and timer_set_offset().
    """
    count = vcpu.get_one_reg(regs.TIMER_CNT)
    offset = vcpu.get_one_reg(CNTVOFF_EL2) if Feature.EL2 in decided.features else 0
    return (count + offset) & (1 << 64) - 1


def set_boot_registers(vcpu: Vcpu, image: LoadedImage, decided: Plan) -> None:
    """Set the boot CPU's registers: entry point, device tree and processor state."""
    vcpu.set_one_reg(regs.PC, image.entry)
    if Feature.AARCH32 in decided.features:
        vcpu.set_one_reg(regs.X(0), 0)
        vcpu.set_one_reg(regs.X(1), NO_MACHINE_TYPE)
        vcpu.set_one_reg(regs.X(2), image.dtb)
        vcpu.set_one_reg(regs.PSTATE, BOOT_PSTATE_32)
        return
    vcpu.set_one_reg(regs.X(0), image.dtb)
    el2 = Feature.EL2 in decided.features
    vcpu.set_one_reg(regs.PSTATE, BOOT_PSTATE_EL2 if el2 else BOOT_PSTATE)
    if image.kind == "ELF" and image.flags.BIG_ENDIAN:
        # As in QEMU: the compiler's code expects its data in that order. Linux sets the bit itself.
        control = SCTLR_EL2 if el2 else SCTLR_EL1
        vcpu.set_one_reg(control, vcpu.get_one_reg(control) | SCTLR_EE)
