"""The device tree of a pyvmm machine, made from a plain description of it.

lkvm's guests have the same nodes and properties (kvmtool, arm/fdt.c). Linux's
Documentation/devicetree/bindings defines them. layout.py has the addresses and interrupts.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyvmm import layout
from pyvmm.arm64.core import affinity
from pyvmm.base.paths import is_utf8
from pyvmm.base.records import Record
from pyvmm.boot import fdt
from pyvmm.devices.device import Device
from pyvmm.devices.exit import ExitRegister
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.errors import UsageError

# Nodes refer to each other by phandle
PHANDLE_GIC = 1
PHANDLE_CLOCK = 2
PHANDLE_ITS = 3

# Interrupt specifiers.  Source: Linux, include/dt-bindings/interrupt-controller/{arm-gic,irq}.h
GIC_SPI = 0
GIC_PPI = 1
IRQ_TYPE_EDGE_RISING = 1
IRQ_TYPE_LEVEL_HIGH = 4

APB_CLOCK_HZ = 24_000_000  # the clock of the PL031's bus; nothing depends on it

# Linux truncates bootargs to this size, NUL included.
# Source: arch/arm64/include/uapi/asm/setup.h, COMMAND_LINE_SIZE
COMMAND_LINE_SIZE = 2048


class MachineDescription(Record, kw_only=True):
    """A machine as the device tree describes it."""

    ram_size: int
    mpidrs: tuple[int, ...]  # MPIDR_EL1 of every vCPU; the first one boots
    ram_base: int = layout.RAM_BASE
    bootargs: str = ""
    initrd: tuple[int, int] | None = None  # guest physical [start, end)
    kaslr_seed: int | None = None
    rng_seed: bytes = b""
    timer_hz: int | None = None  # replaces a CNTFRQ_EL0 that firmware set wrongly
    uarts: int = layout.UART_COUNT
    rtc: bool = True
    exit_register: bool = True
    vmgenid: bool = False
    virtio: int = 0  # the number of devices, in the first slots
    pmu: bool = False
    gicv2: bool = False
    its: bool = False
    nested: bool = False  # the guest starts in EL2
    aarch32: bool = False  # the guest starts in 32-bit state


def machine_tree(machine: MachineDescription) -> dict[str, fdt.Property | fdt.Node]:
    """Return the device tree of ``machine`` as nested dicts."""
    uarts = [layout.uart(index) for index in range(machine.uarts)]
    tree: dict[str, fdt.Property | fdt.Node] = {
        "compatible": "linux,dummy-virt",
        "model": "pyvmm",
        "interrupt-parent": PHANDLE_GIC,
        "#address-cells": 2,
        "#size-cells": 2,
        "chosen": _chosen(machine),
        "aliases": {f"serial{n}": "/" + _path(Uart8250, uart) for n, uart in enumerate(uarts)},
        f"memory@{machine.ram_base:x}": {
            "device_type": "memory",
            "reg": fdt.u64(machine.ram_base, machine.ram_size),
        },
        "cpus": _cpus(machine),
        # KVM's PSCI is 1.0 or later, which is compatible with 0.2. Without EL3 guests call it by
        # HVC, but the HVCs of a guest in EL2 do not leave the guest.
        "psci": {
            "compatible": ("arm,psci-1.0", "arm,psci-0.2"),
            "method": "smc" if machine.nested else "hvc",
        },
        "timer": _timer(machine),
        f"intc@{layout.GICD.base:x}": _gic(machine),
    }
    if machine.pmu:
        tree["pmu"] = {
            "compatible": "arm,armv8-pmuv3",
            "interrupts": _ppi(machine, layout.PPI_PMU),
        }
    for uart in uarts:
        tree[_path(Uart8250, uart)] = device_node(Uart8250, uart)
    if machine.rtc:
        tree["apb-pclk"] = _clock()
        tree[_path(Pl031, layout.RTC)] = device_node(
            Pl031, layout.RTC, {"clocks": PHANDLE_CLOCK, "clock-names": "apb_pclk"}
        )
    for slot in map(layout.virtio, range(machine.virtio)):
        from pyvmm.devices.virtio.mmio import VirtioMmio  # lazily: a plain machine has none

        tree[_path(VirtioMmio, slot)] = device_node(VirtioMmio, slot)
    if machine.vmgenid:
        region = layout.VMGENID
        tree[f"{region.name}@{region.base:x}"] = {
            "compatible": "microsoft,vmgenid",
            "reg": fdt.u64(region.base, layout.VMGENID_SIZE),
            "interrupts": (GIC_SPI, region.spi or 0, IRQ_TYPE_EDGE_RISING),
        }
    if machine.exit_register:
        tree[_path(ExitRegister, layout.EXIT)] = device_node(ExitRegister, layout.EXIT)
    return tree


def machine_dtb(machine: MachineDescription) -> bytes:
    """Return the device tree blob of ``machine``.

    Raises:
        UsageError: the kernel command line is too long, contains a NUL, or is not UTF-8.
    """
    if not is_utf8(machine.bootargs):
        raise UsageError("the kernel command line is not UTF-8 text")
    length = len(machine.bootargs.encode())
    if length >= COMMAND_LINE_SIZE:
        raise UsageError(
            f"the kernel command line has {length} bytes, the limit is {COMMAND_LINE_SIZE - 1}"
        )
    if "\0" in machine.bootargs:
        raise UsageError("the kernel command line contains a NUL")
    # The header has no bits for Aff3. Kernels for arm64 read the CPU's node in place of it.
    boot_cpuid = affinity(machine.mpidrs[0]) & 0xFFFF_FFFF
    blob = fdt.build(machine_tree(machine), boot_cpuid=boot_cpuid)
    if len(blob) > layout.DTB_SIZE:
        raise UsageError(f"the device tree has {len(blob)} bytes, the limit is {layout.DTB_SIZE}")
    return blob


def device_node(
    device: type[Device], region: layout.Region, extra: Mapping[str, fdt.Property] | None = None
) -> dict[str, fdt.Property]:
    """Return the node of a device at a region."""
    node: dict[str, fdt.Property] = {
        "compatible": device.compatible,
        "reg": fdt.u64(region.base, region.size),
    }
    if region.spi is not None:
        trigger = IRQ_TYPE_EDGE_RISING if device.edge_triggered else IRQ_TYPE_LEVEL_HIGH
        node["interrupts"] = (GIC_SPI, region.spi, trigger)
    return node | dict(device.properties) | dict(extra or {})


def _path(device: type[Device], region: layout.Region) -> str:
    return f"{device.node_name}@{region.base:x}"


def _chosen(machine: MachineDescription) -> dict[str, fdt.Property]:
    chosen: dict[str, fdt.Property] = {"bootargs": machine.bootargs}
    if machine.uarts:
        chosen["stdout-path"] = "/" + _path(Uart8250, layout.uart(0))
    if machine.initrd is not None:
        start, end = machine.initrd
        chosen["linux,initrd-start"] = fdt.u64(start)
        chosen["linux,initrd-end"] = fdt.u64(end)
    if machine.kaslr_seed is not None:
        chosen["kaslr-seed"] = fdt.u64(machine.kaslr_seed)
    if machine.rng_seed:
        chosen["rng-seed"] = machine.rng_seed
    return chosen


def _ppi(machine: MachineDescription, *ppis: int) -> tuple[int, ...]:
    """Return the specifiers of private, level-triggered interrupts."""
    flags = IRQ_TYPE_LEVEL_HIGH
    if machine.gicv2:  # bits 15:8 of its binding: the CPUs that have the interrupt
        flags |= (1 << len(machine.mpidrs)) - 1 << 8
    return tuple(cell for ppi in ppis for cell in (GIC_PPI, ppi, flags))


def _cpus(machine: MachineDescription) -> dict[str, fdt.Property | fdt.Node]:
    regs = [affinity(mpidr) for mpidr in machine.mpidrs]
    cells = 2 if max(regs) >> 32 else 1
    cpus: dict[str, fdt.Property | fdt.Node] = {"#address-cells": cells, "#size-cells": 0}
    for reg in regs:
        cpus[f"cpu@{reg:x}"] = {
            "device_type": "cpu",
            "compatible": "arm,arm-v8",
            "enable-method": "psci",
            "reg": fdt.u64(reg) if cells == 2 else reg,
        }
    return cpus


def _timer(machine: MachineDescription) -> dict[str, fdt.Property]:
    ppis = [
        layout.PPI_TIMER_SECURE,
        layout.PPI_TIMER_PHYS,
        layout.PPI_TIMER_VIRT,
        layout.PPI_TIMER_HYP,
    ]
    if machine.nested:
        ppis.append(layout.PPI_TIMER_HYP_VIRT)
    timer: dict[str, fdt.Property] = {
        "compatible": "arm,armv7-timer" if machine.aarch32 else "arm,armv8-timer",
        "interrupts": _ppi(machine, *ppis),
        "always-on": None,
    }
    if machine.timer_hz is not None:
        timer["clock-frequency"] = machine.timer_hz
    return timer


def _gic(machine: MachineDescription) -> dict[str, fdt.Property | fdt.Node]:
    vcpus = len(machine.mpidrs)
    other = layout.GICC if machine.gicv2 else layout.gicr(vcpus)
    gic: dict[str, fdt.Property | fdt.Node] = {
        "compatible": "arm,cortex-a15-gic" if machine.gicv2 else "arm,gic-v3",
        "#interrupt-cells": 3,
        "interrupt-controller": None,
        "reg": fdt.u64(layout.GICD.base, layout.GICD.size, other.base, other.size),
        "phandle": PHANDLE_GIC,
        "#address-cells": 2,
        "#size-cells": 2,
        "ranges": None,
    }
    if machine.nested:
        gic["interrupts"] = _ppi(machine, layout.PPI_GIC_MAINTENANCE)
    if machine.its:
        its = layout.its(vcpus)
        gic[f"msi-controller@{its.base:x}"] = {
            "compatible": "arm,gic-v3-its",
            "msi-controller": None,
            "#msi-cells": 1,
            "reg": fdt.u64(its.base, its.size),
            "phandle": PHANDLE_ITS,
        }
    return gic


def _clock() -> dict[str, fdt.Property]:
    return {
        "compatible": "fixed-clock",
        "#clock-cells": 0,
        "clock-frequency": APB_CLOCK_HZ,
        "clock-output-names": "apb_pclk",
        "phandle": PHANDLE_CLOCK,
    }
