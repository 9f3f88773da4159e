from __future__ import annotations

from itertools import combinations

import pytest

from pyvmm import layout

MAX_VCPUS = 512  # KVM_MAX_VCPUS of arm64


def regions(vcpus: int) -> list[layout.Region]:
    return [
        layout.PCI_IO,
        *(layout.uart(index) for index in range(layout.UART_COUNT)),
        layout.RTC,
        layout.PVTIME,
        layout.EXIT,
        layout.VMGENID,
        layout.FLASH,
        *(layout.virtio(index) for index in range(layout.VIRTIO_COUNT)),
        layout.its(vcpus),
        layout.gicr(vcpus),
        layout.GICD,
        layout.PCI_ECAM,
    ]


@pytest.mark.parametrize("vcpus", [1, 2, 255, MAX_VCPUS])
def test_regions_lie_apart_and_below_ram(vcpus: int) -> None:
    everything = regions(vcpus)

    for one, other in combinations(everything, 2):
        assert one.end <= other.base or other.end <= one.base, (one, other)
    assert all(region.end <= layout.RAM_BASE for region in everything)


def test_interrupt_below_the_generation_ids_is_of_no_device() -> None:
    assert layout.VMGENID.spi is not None
    assert layout.VMGENID.spi - 1 not in [region.spi for region in regions(1)]


def test_spis_are_distinct_and_implemented() -> None:
    spis = [region.spi for region in regions(1) if region.spi is not None]

    assert len(set(spis)) == len(spis)
    assert max(spis) < layout.NR_IRQS - 32


# Observed in lkvm's device trees; guests built for lkvm may have them compiled in.
@pytest.mark.parametrize(
    ("region", "base"),
    [
        (layout.uart(0), 0x0100_0000),
        (layout.uart(3), 0x0100_3000),
        (layout.RTC, 0x0101_0000),
        (layout.virtio(0), 0x0300_0000),
        (layout.virtio(2), 0x0300_0400),
        (layout.gicr(1), 0x3FFD_0000),
        (layout.GICD, 0x3FFF_0000),
        (layout.PCI_ECAM, 0x4000_0000),
    ],
)
def test_region_is_where_lkvm_has_it(region: layout.Region, base: int) -> None:
    assert region.base == base


def test_gic_frames_are_aligned_as_kvm_requires() -> None:
    # KVM_DEV_ARM_VGIC_GRP_ADDR: 64 KiB
    for region in (layout.GICD, layout.gicr(3), layout.its(3)):
        assert region.base % (64 * layout.KIB) == 0


@pytest.mark.parametrize(
    ("ram", "bits"),
    [
        (1 * layout.MIB, 32),
        (2 * layout.GIB, 32),
        (2 * layout.GIB + 1, 33),
        (6 * layout.GIB, 33),
        (1022 * layout.GIB, 40),
        (1023 * layout.GIB, 41),
    ],
)
def test_ipa_bits_cover_ram_and_no_more(ram: int, bits: int) -> None:
    assert layout.ipa_bits(ram) == bits
