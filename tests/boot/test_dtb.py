"""The machine's device tree, read by dtc and libfdt."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import cast

import pytest

from pyvmm import layout
from pyvmm.boot.dtb import MachineDescription, machine_dtb
from pyvmm.errors import UsageError
from tests.boot.judges import Libfdt, Tree, run_dtc

PLAIN = MachineDescription(ram_size=256 * layout.MIB, mpidrs=(0x8000_0000,))
FULL = MachineDescription(
    ram_size=6 * layout.GIB,
    mpidrs=tuple(0x8000_0000 | n % 16 | n // 16 << 8 for n in range(20)),
    bootargs="console=ttyS0 root=/dev/vda rw",
    initrd=(0x8800_0000, 0x8812_3456),
    kaslr_seed=0x0123_4567_89AB_CDEF,
    pmu=True,
    its=True,
    virtio=3,
)
BARE = PLAIN.replace(uarts=0, rtc=False, exit_register=False)


def node(tree: Tree, name: str) -> Tree:
    return cast(Tree, tree[name])


def cells(tree: Tree, name: str) -> tuple[int, ...]:
    value = cast(bytes, tree[name])
    return struct.unpack(f">{len(value) // 4}I", value)


def wide(tree: Tree, name: str) -> tuple[int, ...]:
    value = cast(bytes, tree[name])
    return struct.unpack(f">{len(value) // 8}Q", value)


@pytest.mark.parametrize("machine", [PLAIN, FULL, BARE], ids=["plain", "full", "bare"])
def test_machine_dtb_passes_dtc_without_warnings(
    dtc: Path, libfdt: Libfdt, machine: MachineDescription
) -> None:
    blob = machine_dtb(machine)

    _, warnings = run_dtc(dtc, blob)

    assert warnings == ""
    assert libfdt.check(blob) == 0


def test_chosen_has_bootargs_initrd_and_seed(libfdt: Libfdt) -> None:
    tree = libfdt.tree(machine_dtb(FULL))

    chosen = node(tree, "chosen")

    assert chosen["bootargs"] == b"console=ttyS0 root=/dev/vda rw\0"
    assert chosen["stdout-path"] == b"/serial@1000000\0"
    assert wide(chosen, "linux,initrd-start") == (0x8800_0000,)
    assert wide(chosen, "linux,initrd-end") == (0x8812_3456,)
    assert wide(chosen, "kaslr-seed") == (0x0123_4567_89AB_CDEF,)


def test_chosen_omits_absent_parts(libfdt: Libfdt) -> None:
    chosen = node(libfdt.tree(machine_dtb(BARE)), "chosen")

    assert chosen == {"bootargs": b"\0"}


def test_memory_node_covers_all_ram(libfdt: Libfdt) -> None:
    memory = node(libfdt.tree(machine_dtb(FULL)), "memory@80000000")

    assert wide(memory, "reg") == (0x8000_0000, 6 * layout.GIB)


def test_cpu_nodes_have_affinities_as_addresses(libfdt: Libfdt) -> None:
    cpus = node(libfdt.tree(machine_dtb(FULL)), "cpus")

    assert [name for name in cpus if "@" in name][14:18] == ["cpu@e", "cpu@f", "cpu@100", "cpu@101"]
    assert cells(node(cpus, "cpu@103"), "reg") == (0x103,)
    assert node(cpus, "cpu@103")["enable-method"] == b"psci\0"


def test_cpu_node_has_two_cells_for_four_affinity_levels(dtc: Path, libfdt: Libfdt) -> None:
    blob = machine_dtb(PLAIN.replace(mpidrs=(0x8000_0000, 0x12_8034_5678)))

    cpus = node(libfdt.tree(blob), "cpus")

    assert run_dtc(dtc, blob)[1] == ""
    assert wide(node(cpus, "cpu@1200345678"), "reg") == (0x12_0034_5678,)


def test_boot_cpu_in_the_header_has_no_aff3(libfdt: Libfdt) -> None:
    blob = machine_dtb(PLAIN.replace(mpidrs=(0x12_8034_5678,)))

    assert struct.unpack_from(">10I", blob)[7] == 0x34_5678
    assert "cpu@1200345678" in node(libfdt.tree(blob), "cpus")


def test_gic_node_has_the_layouts_addresses(libfdt: Libfdt) -> None:
    gic = node(libfdt.tree(machine_dtb(FULL)), "intc@3fff0000")

    gicr = layout.gicr(20)
    assert gic["compatible"] == b"arm,gic-v3\0"
    assert wide(gic, "reg") == (layout.GICD.base, layout.GICD.size, gicr.base, gicr.size)
    its = node(gic, f"msi-controller@{layout.its(20).base:x}")
    assert wide(its, "reg") == (layout.its(20).base, layout.ITS_SIZE)


def test_timer_node_has_four_level_high_ppis(libfdt: Libfdt) -> None:
    timer = node(libfdt.tree(machine_dtb(PLAIN)), "timer")

    assert cells(timer, "interrupts") == (1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4)
    assert timer["always-on"] == b""


@pytest.mark.parametrize(
    ("name", "compatible", "spi"),
    [
        ("serial@1000000", b"ns16550a\0", 0),
        ("serial@1003000", b"ns16550a\0", 3),
        ("rtc@1010000", b"arm,pl031\0arm,primecell\0", 223),
    ],
)
def test_device_node_has_a_level_high_spi(
    libfdt: Libfdt, name: str, compatible: bytes, spi: int
) -> None:
    device = node(libfdt.tree(machine_dtb(PLAIN)), name)

    assert device["compatible"] == compatible
    assert cells(device, "interrupts") == (0, spi, 4)


def test_virtio_nodes_have_their_slots_and_rising_edge_spis(libfdt: Libfdt) -> None:
    tree = libfdt.tree(machine_dtb(FULL))

    slots = [name for name in tree if name.startswith("virtio@")]
    third = node(tree, "virtio@3000400")
    assert slots == ["virtio@3000000", "virtio@3000200", "virtio@3000400"]
    assert third["compatible"] == b"virtio,mmio\0"
    assert wide(third, "reg") == (layout.virtio(2).base, 0x200)
    assert cells(third, "interrupts") == (0, 6, 1)
    assert third["dma-coherent"] == b""


def test_serial_node_has_a_pcs_clock(libfdt: Libfdt) -> None:
    serial = node(libfdt.tree(machine_dtb(PLAIN)), "serial@1000000")

    assert cells(serial, "clock-frequency") == (1_843_200,)


def test_rtc_node_refers_to_its_amba_clock(libfdt: Libfdt) -> None:
    tree = libfdt.tree(machine_dtb(PLAIN))
    rtc = node(tree, "rtc@1010000")

    assert rtc["clock-names"] == b"apb_pclk\0"
    assert cells(rtc, "clocks") == cells(node(tree, "apb-pclk"), "phandle")


def test_exit_register_has_a_node(libfdt: Libfdt) -> None:
    register = node(libfdt.tree(machine_dtb(PLAIN)), "exit@1030000")

    assert register["compatible"] == b"pyvmm,exit\0"
    assert wide(register, "reg") == (layout.EXIT.base, layout.EXIT.size)


def test_generation_id_has_a_node_with_an_edge(libfdt: Libfdt) -> None:
    """The node is that of Linux's Documentation/devicetree/bindings/rng/microsoft,vmgenid.yaml."""
    found = node(libfdt.tree(machine_dtb(PLAIN.replace(vmgenid=True))), "vmgenid@1040000")

    assert found["compatible"] == b"microsoft,vmgenid\0"
    assert wide(found, "reg") == (layout.VMGENID.base, 16)
    assert cells(found, "interrupts") == (0, layout.VMGENID.spi, 1)


def test_psci_node_has_the_hvc_method(libfdt: Libfdt) -> None:
    psci = node(libfdt.tree(machine_dtb(PLAIN)), "psci")

    assert psci == {"compatible": b"arm,psci-1.0\0arm,psci-0.2\0", "method": b"hvc\0"}


@pytest.mark.parametrize("pmu", [True, False])
def test_pmu_node_exists_if_enabled(libfdt: Libfdt, pmu: bool) -> None:
    tree = libfdt.tree(machine_dtb(PLAIN.replace(pmu=pmu)))

    assert ("pmu" in tree) == pmu
    assert not pmu or cells(node(tree, "pmu"), "interrupts") == (1, 7, 4)


def test_machine_dtb_fits_512_vcpus(libfdt: Libfdt) -> None:
    mpidrs = tuple(0x8000_0000 | n & 15 | n >> 4 << 8 for n in range(512))

    blob = machine_dtb(FULL.replace(mpidrs=mpidrs))

    assert len(blob) <= layout.DTB_SIZE
    assert len(node(libfdt.tree(blob), "cpus")) == 512 + 2


@pytest.mark.parametrize("bootargs", ["x" * 2048, "a\0b", "a\udcff"])
def test_machine_dtb_refuses_an_unusable_command_line(bootargs: str) -> None:
    with pytest.raises(UsageError, match="kernel command line"):
        machine_dtb(PLAIN.replace(bootargs=bootargs))


def test_machine_dtb_accepts_the_longest_command_line(libfdt: Libfdt) -> None:
    tree = libfdt.tree(machine_dtb(PLAIN.replace(bootargs="x" * 2047)))

    assert node(tree, "chosen")["bootargs"] == b"x" * 2047 + b"\0"
