"""The hardware of one machine: a Config and a host's KVM become RAM, vCPUs, a GIC and devices.

Nothing runs here. The order is the kernel's: vector lengths before FINALIZE, every vCPU before
the GIC's INIT, registers last.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from pyvmm import layout
from pyvmm.arm64 import vl
from pyvmm.boot.dtb import MachineDescription, machine_dtb
from pyvmm.boot.image import LoadedImage, load_image
from pyvmm.config import Config
from pyvmm.devices.bus import Bus
from pyvmm.devices.exit import ExitRegister
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.virtio.console import VirtioConsole
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.errors import HostError
from pyvmm.kvm import regs, sve
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vgic import Vgic
from pyvmm.kvm.vm import Vm, spi
from pyvmm.limits import DEFAULT_IPA_BITS, HostLimits, Plan, plan
from pyvmm.memory import GuestMemory

# PSTATE a boot CPU starts with: EL1h, and D, A, I and F masked.
# Source: Linux, Documentation/arch/arm64/booting.rst, "CPU mode"
BOOT_PSTATE = 0x3C5

MPIDR_EL1 = regs.sysreg(3, 0, 0, 0, 5)

Output = Callable[[bytes], None]


@dataclass(slots=True, kw_only=True)
class Hooks:
    """Where what the guest does outside itself goes to; called in the vCPUs' threads."""

    on_exit: Callable[[int], None]
    output: Output  # the console's
    log: Callable[[str], None]  # a line about a guest's driver that is broken


@dataclass(slots=True, kw_only=True)
class Board:
    """A machine's parts, built and wired, before its first instruction."""

    plan: Plan
    vm: Vm
    memory: GuestMemory
    vcpus: list[Vcpu]
    gic: Vgic
    image: LoadedImage
    dtb: bytes
    uarts: list[Uart8250]
    rtc: Pl031
    console: Uart8250 | VirtioConsole
    virtio: list[VirtioMmio]  # by slot
    bus: Bus


def read_limits(system: System) -> HostLimits:
    """Ask the host's KVM what it gives one VM; the vector lengths by a VM made for that."""
    return HostLimits(
        max_vcpus=system.check_extension(Cap.MAX_VCPUS),
        ipa_bits=system.check_extension(Cap.ARM_VM_IPA_SIZE) or DEFAULT_IPA_BITS,
        vls=sve.host_vector_lengths(system),
    )


def build(system: System, config: Config, hooks: Hooks, undo: ExitStack) -> Board:
    """Make the machine; ``undo`` gets the way back of every step.

    Raises:
        HostError: the host cannot give what was asked; nothing was made of it then.
        ImageError: the image cannot be booted.
    """
    decided = plan(config, read_limits(system))
    vm = undo.enter_context(system.create_vm(decided.ipa_bits))
    memory = undo.enter_context(GuestMemory(layout.RAM_BASE, decided.memory))
    vm.set_user_memory_region(0, memory.base, memory.size, memory.host_address)
    if system.has(Cap.ARM_NISV_TO_USER):
        vm.enable_cap(Cap.ARM_NISV_TO_USER)  # an access we cannot decode comes to us, with facts
    vcpus = _make_vcpus(system, vm, decided, undo)
    gic = Vgic.create(
        vm,
        distributor=layout.GICD.base,
        redistributors=layout.gicr(len(vcpus)).base,
        nr_irqs=layout.NR_IRQS,
    )
    undo.callback(gic.close)
    # The image comes after all that a host can refuse: who asks whether this host can do
    # something, as kvm-unit-tests does, asks with an image that does not exist.
    image = load_image(config.image, memory, initrd=config.initrd)
    dtb = _describe(config, memory, vcpus, image)
    memory.write(image.dtb, dtb)
    _set_boot_registers(vcpus[0], image)
    uarts, rtc = _make_devices(vm, hooks.output)
    console: Uart8250 | VirtioConsole = uarts[0]
    virtio = []
    if config.console == "virtio":
        console = VirtioConsole(memory, hooks.output, hooks.log)
        virtio.append(_plug_in(console, 0, vm, config, undo))
    return Board(
        plan=decided,
        vm=vm,
        memory=memory,
        vcpus=vcpus,
        gic=gic,
        image=image,
        dtb=dtb,
        uarts=uarts,
        rtc=rtc,
        console=console,
        virtio=virtio,
        bus=_make_bus(uarts, rtc, ExitRegister(hooks.on_exit), virtio),
    )


def _make_vcpus(system: System, vm: Vm, decided: Plan, undo: ExitStack) -> list[Vcpu]:
    """Every vCPU, with the same features and the same vector lengths; all but the first off."""
    features = {VcpuFeature.PSCI_0_2}
    if system.has(Cap.ARM_PTRAUTH_ADDRESS) and system.has(Cap.ARM_PTRAUTH_GENERIC):
        features |= {VcpuFeature.PTRAUTH_ADDRESS, VcpuFeature.PTRAUTH_GENERIC}
    if decided.vls:
        features.add(VcpuFeature.SVE)
    target = vm.preferred_target()
    vcpus = []
    for number in range(decided.vcpus):
        vcpu = undo.enter_context(vm.create_vcpu(number))
        vcpu.init(target, features | {VcpuFeature.POWER_OFF} if number else features)
        if decided.vls:
            _give_vector_lengths(vcpu, decided.vls)
        vcpus.append(vcpu)
    return vcpus


def _give_vector_lengths(vcpu: Vcpu, vls: vl.VlSet) -> None:
    """Give a vCPU exactly that set, and make sure that KVM took it as it was meant."""
    sve.write_vls(vcpu, vls)
    vcpu.finalize(VcpuFeature.SVE)
    taken = sve.read_vls(vcpu)
    if taken != vls:
        raise HostError(
            f"vCPU {vcpu.id} was given the vector lengths {vl.show(vls)}, "
            f"but KVM reads back {vl.show(taken) or 'none'}"
        )


def _describe(config: Config, memory: GuestMemory, vcpus: list[Vcpu], image: LoadedImage) -> bytes:
    """The device tree."""
    return machine_dtb(
        MachineDescription(
            ram_size=memory.size,
            mpidrs=tuple(vcpu.get_one_reg(MPIDR_EL1) for vcpu in vcpus),
            bootargs=config.bootargs,
            initrd=image.initrd,
            virtio=int(config.console == "virtio"),
        )
    )


def _set_boot_registers(vcpu: Vcpu, image: LoadedImage) -> None:
    """Point the boot CPU at the image, and X0 at the device tree."""
    vcpu.set_one_reg(regs.PC, image.entry)
    vcpu.set_one_reg(regs.X(0), image.dtb)
    vcpu.set_one_reg(regs.PSTATE, BOOT_PSTATE)


def _make_devices(vm: Vm, output: Output) -> tuple[list[Uart8250], Pl031]:
    """The devices of lkvm's map; only the first UART is connected to anything."""

    def line(number: int | None) -> Callable[[bool], None]:
        assert number is not None
        irq = spi(number)
        return lambda level: vm.irq_line(irq, level)

    uarts = [
        Uart8250(line(layout.uart(index).spi), output if index == 0 else _nowhere)
        for index in range(layout.UART_COUNT)
    ]
    return uarts, Pl031(line(layout.RTC.spi))


def _plug_in(
    device: VirtioDevice, slot: int, vm: Vm, config: Config, undo: ExitStack
) -> VirtioMmio:
    """Put a virtio device into a slot, with an irqfd for its interrupt."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    undo.callback(os.close, fd)
    spi_number = layout.virtio(slot).spi
    assert spi_number is not None
    vm.irqfd(fd, spi_number)
    undo.callback(device.stop)  # it holds views of guest RAM
    pulse = functools.partial(os.eventfd_write, fd, 1)
    return VirtioMmio(device, pulse, legacy=config.virtio_transport == "mmio-legacy")


def _make_bus(
    uarts: list[Uart8250], rtc: Pl031, exit_register: ExitRegister, virtio: list[VirtioMmio]
) -> Bus:
    bus = Bus()
    for slot, transport in enumerate(virtio):
        bus.add(layout.virtio(slot), transport)
    for index, uart in enumerate(uarts):
        bus.add(layout.uart(index), uart)
    bus.add(layout.RTC, rtc)
    bus.add(layout.EXIT, exit_register)
    return bus


def _nowhere(data: bytes) -> None:
    """Where an unconnected UART's output goes."""
