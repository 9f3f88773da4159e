"""The guest physical map: one table, at lkvm's addresses.

     0x0000_0000  +-----------------------------+
                  | PCI I/O space (reserved)    |  64 KiB
     0x0100_0000  +-----------------------------+
                  | four ns16550a UARTs         |  0x1000 apart, SPI 0 to 3, level
     0x0101_0000  +-----------------------------+
                  | PL031 real-time clock       |  SPI 223, level
     0x0102_0000  +-----------------------------+
                  | pvtime                      |  64 bytes a vCPU
     0x0103_0000  +-----------------------------+
                  | exit register               |  a 32-bit write of N ends the VM with code N
     0x0104_0000  +-----------------------------+
                  | VM generation ID            |  16 bytes, SPI 222, edge
     0x0200_0000  +-----------------------------+
                  | CFI flash (reserved)        |  16 MiB
     0x0300_0000  +-----------------------------+
                  | virtio-mmio                 |  0x200 apart, SPI 4 up, edge
                  +-----------------------------+
                  | GICv3 ITS                   |  128 KiB, just below the redistributors
                  | GICv3 redistributors        |  128 KiB a vCPU, just below the distributor;
                  |                             |  a GICv2's CPU interface at 0x3ffd_0000 instead
     0x3fff_0000  +-----------------------------+
                  | GIC distributor             |  64 KiB
     0x4000_0000  +-----------------------------+
                  | PCI ECAM (reserved)         |  256 MiB, then 32-bit PCI MMIO
     0x8000_0000  +-----------------------------+
                  | RAM                         |
                  +-----------------------------+
                  | memory of devices           |  each at a multiple of 1 GiB, up to the host's
                  +-----------------------------+  IPA limit

Source: kvmtool, arm/include/arm-common/kvm-arch.h, whose map guests built for lkvm expect;
the exit register and the VM generation ID are pyvmm's own, in a hole of that map.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

RAM = "ram"  # the name of this area of guest memory

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class Region(NamedTuple):  # not a Record: guests/layout_h.py runs this file alone
    """One range of guest physical addresses; ``spi`` is its first shared interrupt, if any."""

    name: str
    base: int
    size: int
    spi: int | None = None

    @property
    def end(self) -> int:
        """The first address after the region."""
        return self.base + self.size


PCI_IO = Region("pci-io", 0x0000_0000, 64 * KIB)
UART = Region("uart", 0x0100_0000, 0x1000, spi=0)  # the first of UART_COUNT
RTC = Region("rtc", 0x0101_0000, 0x1000, spi=223)
PVTIME = Region("pvtime", 0x0102_0000, 64 * KIB)  # PVTIME_SIZE a vCPU
EXIT = Region("exit", 0x0103_0000, 0x1000)
VMGENID = Region("vmgenid", 0x0104_0000, 64 * KIB, spi=222)  # VMGENID_SIZE, in a page of any host
FLASH = Region("flash", 0x0200_0000, 16 * MIB)
VIRTIO = Region("virtio", 0x0300_0000, 0x200, spi=4)  # the first of VIRTIO_COUNT
GICD = Region("gicd", 0x3FFF_0000, 64 * KIB)
GICC = Region("gicc", 0x3FFD_0000, 8 * KIB)  # of a GICv2, in the 128 KiB that lkvm reserves
PCI_ECAM = Region("pci-ecam", 0x4000_0000, 256 * MIB)

UART_COUNT = 4
VIRTIO_COUNT = 64
PVTIME_SIZE = 64
VMGENID_SIZE = 16
GICR_SIZE = 128 * KIB  # RD_base and SGI_base frames of one vCPU
ITS_SIZE = 128 * KIB
NR_IRQS = 256  # INTIDs the GIC implements: 16 SGIs, 16 PPIs, SPI 0 to 223

RAM_BASE = 0x8000_0000
WINDOW_ALIGN = GIB  # the largest section of arm64 Linux's memory model: the one before v5.12
KERNEL_OFFSET = 0x8_0000  # of an image without an arm64 header, from the start of RAM
KERNEL_OFFSET_32 = 0x8000  # of a 32-bit image
DTB_SIZE = 64 * KIB
DTB_ALIGN = 2 * MIB
DTB_BELOW = 256 * MIB  # DTB and initrd end below this offset in RAM, or below its end

# Private peripheral interrupts.
# Source: Arm BSA (DEN0094), table "PPI assignments"; what lkvm and Linux's virt boards use.
FIRST_PPI = 16  # the INTID of PPI 0.  Source: GICv3 architecture (Arm IHI 0069), table 2-1
PPI_TIMER_SECURE = 13
PPI_TIMER_PHYS = 14
PPI_TIMER_VIRT = 11
PPI_TIMER_HYP = 10
PPI_TIMER_HYP_VIRT = 12
PPI_GIC_MAINTENANCE = 9
PPI_PMU = 7


def uart(index: int) -> Region:
    """Return the UART with that index (0 is the console)."""
    return Region(f"uart{index}", UART.base + index * UART.size, UART.size, spi=index)


def virtio(index: int) -> Region:
    """Return the virtio-mmio slot with that index."""
    spi = 4 + index
    return Region(f"virtio{index}", VIRTIO.base + index * VIRTIO.size, VIRTIO.size, spi=spi)


def gicr(vcpus: int) -> Region:
    """Return the redistributors of ``vcpus`` vCPUs, in vCPU order."""
    size = vcpus * GICR_SIZE
    return Region("gicr", GICD.base - size, size)


def its(vcpus: int) -> Region:
    """Return the interrupt translation service of a machine with ``vcpus`` vCPUs."""
    return Region("its", gicr(vcpus).base - ITS_SIZE, ITS_SIZE)


def windows(sizes: Iterable[int], ram_end: int) -> tuple[Region, ...]:
    """Return the address ranges of the devices' memory, in order above RAM; some are empty.

    A gap before each ensures that no buffer of the guest lies in two memories.
    """
    regions = []
    end = ram_end
    for number, size in enumerate(sizes):
        base = (end // WINDOW_ALIGN + 1) * WINDOW_ALIGN if size else end
        regions.append(Region(f"window{number}", base, size))
        end = base + size
    return tuple(regions)


def ipa_bits(ram_size: int, ram_base: int = RAM_BASE) -> int:
    """Return the guest physical address bits that a machine with that RAM needs (at least 32)."""
    return max(32, (ram_base + ram_size - 1).bit_length())
