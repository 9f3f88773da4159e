"""The hardware of one machine: RAM, vCPUs, a GIC and devices, made from a Config by a host's KVM.

Nothing runs here. KVM requires the order: vector lengths before FINALIZE, every vCPU before the
GIC's INIT, registers last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyvmm import layout
from pyvmm.base.loop import Loop, Timer
from pyvmm.base.records import Record
from pyvmm.boot.cmdline import command_line
from pyvmm.boot.dtb import MachineDescription, machine_dtb
from pyvmm.boot.image import LoadedImage, load_image
from pyvmm.boot.linux import check_cpu
from pyvmm.config import Config, Hotplug
from pyvmm.devices.bus import Bus
from pyvmm.devices.exit import ExitRegister
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.errors import VmmError
from pyvmm.kvm import regs, sve
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.stats import Stats
from pyvmm.kvm.system import System
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm, spi
from pyvmm.machine.counts import open_stats
from pyvmm.machine.irqchip import Irqchip, choose_irqchip, make_irqchip
from pyvmm.machine.plan import DEFAULT_IPA_BITS, Feature, HostLimits, Plan, plan
from pyvmm.machine.slots import MemorySlots
from pyvmm.machine.vcpus import (
    MachineVcpu,
    host_features,
    init_pmus,
    make_pvtime,
    make_vcpus,
    online_cpus,
    set_boot_registers,
)
from pyvmm.machine.vmgenid import GenerationId
from pyvmm.memory.ram import GuestMemory, Memory

if TYPE_CHECKING:
    # imported lazily: only machines with virtio devices need them
    from pyvmm.devices.virtio.console import VirtioConsole
    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.devices.virtio.mmio import VirtioMmio
    from pyvmm.memory.map import MemoryMap

ID_AA64MMFR0_EL1 = regs.sysreg(3, 0, 0, 7, 0)
RNG_SEED = 64  # bytes of the guest's first entropy; a ChaCha key has 32

Output = Callable[[bytes], None]


class Hooks(Record, kw_only=True):
    """Functions that get a guest's output and exit code, in the vCPUs' threads."""

    on_exit: Callable[[int], None]
    output: Output  # the console's
    terminals: Mapping[int, Output]  # of the UARTs, by their numbers
    log: Callable[[str], None]  # a line about the image or a faulty guest driver
    fail: Callable[[VmmError], None]  # ends the run, because a device cannot go on


class Board(Record, kw_only=True, frozen=False):
    """A machine's parts, made and connected, before its first instruction.

    A restored machine has no ``image`` and no ``dtb``.
    """

    plan: Plan
    vm: Vm
    memory: GuestMemory
    addressable: Memory  # RAM, and the memory of devices
    slots: MemorySlots
    pvtime: GuestMemory | None
    vmgenid: GenerationId | None
    vcpus: list[MachineVcpu]
    irqchip: Irqchip
    uarts: list[Uart8250]
    rtc: Pl031
    console: Uart8250 | VirtioConsole
    virtio: list[VirtioMmio]  # by slot
    bus: Bus
    stats: list[Stats]  # of the vCPUs; empty before Linux 5.14
    image: LoadedImage | None = None
    dtb: bytes = b""


class RtcAlarm:
    """A timer of a loop that raises the alarm of the real-time clock in time."""

    def __init__(self, rtc: Pl031, loop: Loop) -> None:
        self._rtc = rtc
        self._loop = loop
        self._timer: Timer | None = None
        self._rtc.on_rearm = lambda: loop.call(self._rearm)
        loop.call(self._rearm)  # the clock of a restored machine may have its alarm set

    def stop(self) -> None:
        """Stop using the loop."""
        self._rtc.on_rearm = None

    def _rearm(self) -> None:
        if self._timer is not None:
            self._loop.cancel(self._timer)
            self._timer = None
        due = self._rtc.next_alarm()
        if due is not None:
            self._timer = self._loop.after(due - time.time(), self._tick)

    def _tick(self) -> None:
        self._rtc.tick()
        self._rearm()


def read_limits(system: System) -> HostLimits:
    """Ask the host's KVM for its limits; a temporary VM shows the vector lengths."""
    return HostLimits(
        max_vcpus=system.check_extension(Cap.MAX_VCPUS),
        ipa_bits=system.check_extension(Cap.ARM_VM_IPA_SIZE) or DEFAULT_IPA_BITS,
        vls=sve.host_vector_lengths(system),
        features=host_features(system),
        cpus=online_cpus(),
    )


def build(system: System, config: Config, hooks: Hooks, undo: ExitStack) -> Board:
    """Make the machine and load its image; ``undo`` gets the cleanup of every step.

    Raises:
        HostError: the host cannot provide what the Config requests.
        ImageError: the image cannot be booted.
    """
    board = assemble(system, config, plan(config, read_limits(system)), hooks, undo)
    if config.cpu.ids:
        from pyvmm.machine.idregs import set_id_registers  # lazily: few machines have a CPU model

        set_id_registers(board.vm, board.vcpus, config.cpu.ids)
    # The image is loaded last. kvm-unit-tests checks a host's limits with an image that does not
    # exist: the error must be about the host, not the image.
    _load(board, config, hooks.log)
    return board


def assemble(system: System, config: Config, decided: Plan, hooks: Hooks, undo: ExitStack) -> Board:
    """Make a machine with empty memory and reset vCPUs.

    Raises: HostError, if the host cannot provide what the Config requests.
    """
    # Freed after the VM: while it exists, KVM unmaps at each munmap() all that a guest hypervisor
    # has mapped for its own guests.  Source: Linux, arch/arm64/kvm/mmu.c, kvm_unmap_gfn_range()
    memories = undo.enter_context(ExitStack())
    vm = undo.enter_context(system.create_vm(decided.ipa_bits))
    gic = choose_irqchip(vm, config)
    memory = memories.enter_context(
        GuestMemory(
            config.ram_base,
            decided.memory,
            huge_pages=config.hugetlbfs,
            shared=config.shares_memory,
        )
    )
    slots = MemorySlots(vm)
    slots.add(layout.RAM, memory.base, memory.size, memory.host_address)
    slots.save(layout.RAM, memory)
    enable_capabilities(system, vm, decided)
    vcpus = make_vcpus(vm, decided, undo)
    irqchip = make_irqchip(vm, gic, config, len(vcpus), undo)
    init_pmus(vcpus, decided)
    pvtime = make_pvtime(vcpus, decided, slots, memories)
    vmgenid = GenerationId(vm, slots, memories) if decided.vmgenid else None
    uarts, rtc = _make_uarts_and_rtc(vm, {**hooks.terminals, 0: hooks.output})
    console: Uart8250 | VirtioConsole = uarts[0]
    addressable: Memory = memory
    virtio: list[VirtioMmio] = []
    if config.devices or config.console == "virtio":
        from pyvmm.machine.devices import plug_in
        from pyvmm.memory.map import MemoryMap

        addressable = several = MemoryMap(memory)
        devices, virtio_console = _make_virtio(config, decided, several, slots, hooks, undo)
        console = virtio_console or console
        virtio = plug_in(devices, vm, undo, config.virtio_transport)
    return Board(
        plan=decided,
        vm=vm,
        memory=memory,
        addressable=addressable,
        slots=slots,
        pvtime=pvtime,
        vmgenid=vmgenid,
        vcpus=vcpus,
        irqchip=irqchip,
        uarts=uarts,
        rtc=rtc,
        console=console,
        virtio=virtio,
        bus=_make_bus(uarts, rtc, ExitRegister(hooks.on_exit), virtio),
        stats=open_stats(vcpus, undo) if system.has(Cap.BINARY_STATS_FD) else [],
    )


def _load(board: Board, config: Config, log: Callable[[str], None]) -> None:
    """Load the image and a device tree, and set the boot CPU's registers.

    Raises: ImageError.
    """
    memory, boot_cpu = board.memory, board.vcpus[0]
    image = load_image(config.image, memory, initrd=config.initrd, aarch32=config.cpu.aarch32)
    if image.flags:
        check_cpu(image.flags, boot_cpu.get_one_reg(ID_AA64MMFR0_EL1), str(config.image))
    for note in image.notes:
        log(note)
    if config.params and image.cmdline:
        log(f"`params` replaces the command line in {config.image}: {image.cmdline}")
    board.image = image
    board.dtb = machine_dtb(_description(config, memory, board.vcpus, board.irqchip, image))
    memory.write(image.dtb, board.dtb)
    set_boot_registers(boot_cpu, image, board.plan)


def enable_capabilities(system: System, vm: Vm, decided: Plan) -> None:
    """Enable optional capabilities of a VM, before its first vCPU."""
    if system.has(Cap.ARM_NISV_TO_USER):
        vm.enable_cap(Cap.ARM_NISV_TO_USER)  # undecodable accesses become exits
    if system.has(Cap.ARM_WRITABLE_IMP_ID_REGS):
        vm.enable_cap(Cap.ARM_WRITABLE_IMP_ID_REGS)  # MIDR_EL1, for guests of other hosts
    if Feature.MTE in decided.features:
        vm.enable_cap(Cap.ARM_MTE)


def _description(
    config: Config, memory: GuestMemory, vcpus: Sequence[Vcpu], irqchip: Irqchip, image: LoadedImage
) -> MachineDescription:
    """Return the machine's description for the device tree."""
    return MachineDescription(
        ram_base=memory.base,
        ram_size=memory.size,
        mpidrs=tuple(vcpu.get_one_reg(regs.MPIDR_EL1) for vcpu in vcpus),
        bootargs=command_line(
            config.params or image.cmdline,
            console=config.console,
            hotplug=any(isinstance(device, Hotplug) for device in config.devices),
            defaults=not config.nodefaults,
        ),
        initrd=image.initrd,
        kaslr_seed=config.kaslr_seed,
        rng_seed=os.urandom(RNG_SEED),
        timer_hz=config.timer_hz,
        pmu=config.cpu.pmu,
        gicv2=irqchip.name == "gicv2",
        its=irqchip.its is not None,
        nested=config.cpu.nested,
        aarch32=config.cpu.aarch32,
        virtio=len(config.devices) + (config.console == "virtio"),
        vmgenid=config.vmgenid,
    )


def _make_uarts_and_rtc(vm: Vm, outputs: Mapping[int, Output]) -> tuple[list[Uart8250], Pl031]:
    """Make the devices of lkvm's map; a UART without an output drops its bytes."""

    def line(irq: int) -> Callable[[bool], None]:
        return lambda level: vm.irq_line(irq, level)

    uarts = [
        Uart8250(line(irq), outputs.get(index, _drop)) for index, irq in enumerate(uart_lines())
    ]
    return uarts, Pl031(line(_line_of(layout.RTC)))


def uart_lines() -> list[int]:
    """Return the interrupts of the UARTs, for `Vm.irq_line`."""
    return [_line_of(layout.uart(index)) for index in range(layout.UART_COUNT)]


def _line_of(region: layout.Region) -> int:
    assert region.spi is not None
    return spi(region.spi)


def _make_virtio(
    config: Config,
    decided: Plan,
    memory: MemoryMap,
    slots: MemorySlots,
    hooks: Hooks,
    undo: ExitStack,
) -> tuple[list[VirtioDevice], VirtioConsole | None]:
    """Make the virtio devices, by slot, and the virtio console, if the Config has one."""
    from pyvmm.machine.devices import make_devices

    devices = make_devices(
        config.devices,
        decided,
        memory=memory,
        slots=slots,
        undo=undo,
        log=hooks.log,
        fail=hooks.fail,
    )
    if config.console != "virtio":
        return devices, None
    from pyvmm.devices.virtio.console import VirtioConsole

    console = VirtioConsole(memory, hooks.output, hooks.log)
    return [console, *devices], console


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


def _drop(data: bytes) -> None:
    """Drop the output of an unconnected UART."""
