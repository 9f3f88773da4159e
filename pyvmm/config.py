"""What a machine is to be: plain data, checked for what makes no sense on any host.

What only a host can refuse (its vCPU limit, its address width, its vector lengths) is checked
by the machine, when it meets the host.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from pyvmm.base.records import Record, made
from pyvmm.base.units import show_size
from pyvmm.errors import UsageError
from pyvmm.layout import MIB, RAM_BASE, UART_COUNT, VIRTIO_COUNT, WINDOW_ALIGN

PAGE = 4096
RAM_ALIGN = 2 * MIB  # the arm64 boot protocol's.  Source: Documentation/arch/arm64/booting.rst
CONSOLES = ("serial", "virtio", "hv")
TRANSPORTS = ("mmio", "mmio-legacy")
IRQCHIPS = ("gicv3", "gicv3-its", "gicv2")
TERMINALS = frozenset(range(UART_COUNT))
NAME = frozenset("_.+:@-")  # and letters and digits: of a file, wherever a shell meets it
UINT64 = (1 << 64) - 1

BLOCK = 2 * MIB  # of memory that is plugged, at least: a huge page
BLOCKS = 1024  # that many by default, at most: each is a memory slot of KVM's

PMEM_UNIT = 2 * MIB  # a subsection, what Linux maps devices' memory in (SUBSECTION_SHIFT)


class DeviceConfig(Record, kw_only=True):
    """The base of what may stand in ``Config.devices``.

    ``single``: there can be one. ``modern``: not with the legacy transport. ``unmaps``: its memory
    goes back to the host, as pages of a hugetlbfs do not. ``maps_file``: its memory is a file's.
    """

    single: ClassVar[bool] = False
    modern: ClassVar[bool] = False
    unmaps: ClassVar[bool] = False
    maps_file: ClassVar[bool] = False

    def __str__(self) -> str:
        """The field that asks for the device, with its value."""
        raise NotImplementedError

    def window_size(self) -> int:
        """How many bytes of guest physical addresses above RAM it needs; 0 for none.

        Raises: VmmError, where that depends on something that is not there.
        """
        return 0

    def files(self) -> tuple[Path, ...]:
        """The files behind it."""
        return ()


class Disk(DeviceConfig, kw_only=True):
    """A disk: a raw image or a block device; ``direct`` passes this machine's page cache by."""

    path: Path
    read_only: bool = False
    direct: bool = False

    def __str__(self) -> str:
        """The field and its value."""
        return f"`devices.disk`={self.path}{',ro' * self.read_only}{',direct' * self.direct}"

    def files(self) -> tuple[Path, ...]:
        """The image."""
        return (self.path,)


class Pmem(DeviceConfig, kw_only=True):
    """Persistent memory: a file that the guest reads and writes as memory."""

    maps_file: ClassVar[bool] = True

    path: Path
    read_only: bool = False

    def __str__(self) -> str:
        """The field and its value."""
        return f"`devices.pmem`={self.path}{',ro' * self.read_only}"

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def window_size(self) -> int:
        """All of the file.

        Raises: UsageError, where it is not there, or not of a size that Linux maps.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                size = os.lseek(fd, 0, os.SEEK_END)
            finally:
                os.close(fd)
        except OSError as error:
            raise UsageError(f"`devices.pmem`={self.path}: {error.strerror}") from error
        if not size or size % PMEM_UNIT:
            raise UsageError(
                f"`devices.pmem`={self.path}: {show_size(size)} are not a whole number of "
                f"{show_size(PMEM_UNIT)}",
                hint=f"truncate -s %{PMEM_UNIT >> 20}M {self.path} adds what is missing",
            )
        return size


class Rng(DeviceConfig, kw_only=True):
    """Entropy from this machine's kernel."""

    def __str__(self) -> str:
        """The field and its value."""
        return "`devices.rng`"


class Balloon(DeviceConfig, kw_only=True):
    """A balloon: the guest gives up memory when it is asked to."""

    single: ClassVar[bool] = True
    unmaps: ClassVar[bool] = True

    def __str__(self) -> str:
        """The field and its value."""
        return "`devices.balloon`"


class Hotplug(DeviceConfig, kw_only=True):
    """Room for memory that the guest plugs while it runs, in blocks.

    ``block_size`` left as None is 2 MiB, or more where those would be too many.

    Raises: UsageError, for sizes that no memory has.
    """

    single: ClassVar[bool] = True
    modern: ClassVar[bool] = True
    unmaps: ClassVar[bool] = True

    size: int
    block_size: int | None = None

    def __post_init__(self) -> None:
        block = self.block
        if not BLOCK <= block <= WINDOW_ALIGN or block & (block - 1):
            raise UsageError(
                f"`devices.hotplug`: blocks of {show_size(block)}: they have a power of two from "
                f"{show_size(BLOCK)} to {show_size(WINDOW_ALIGN)}"
            )
        if self.size <= 0 or self.size % block:
            raise UsageError(
                f"`devices.hotplug`={show_size(self.size)}: not a whole number of blocks of "
                f"{show_size(block)}"
            )

    @property
    def block(self) -> int:
        """The bytes of a block."""
        if self.block_size is not None:
            return self.block_size
        enough = 1 << (max(1, -(-self.size // BLOCKS)) - 1).bit_length()
        return min(max(BLOCK, enough), WINDOW_ALIGN)

    def __str__(self) -> str:
        """The field and its value."""
        block = "" if self.block_size is None else f",block={self.block_size >> 20}M"
        return f"`devices.hotplug`={show_size(self.size)}{block}"

    def window_size(self) -> int:
        """As much as there can ever be."""
        return self.size


class SveRequest(Record, kw_only=True):
    """What is asked of SVE; nothing at all means the host's full set, where it has SVE.

    Lengths are in bits. ``vls`` is exactly that set, ``max_vl`` every host length up to it,
    ``required`` makes a host without SVE an error, ``off`` hides SVE from the guest.

    Raises: UsageError, when two requests contradict each other.
    """

    required: bool = False
    off: bool = False
    vls: frozenset[int] | None = None
    max_vl: int | None = None

    def __post_init__(self) -> None:
        if self.off and self.wanted:
            raise UsageError(f"`sve.off` and {self.wanted} contradict each other; give one")
        if self.vls is not None and self.max_vl is not None:
            raise UsageError("`sve.vls` and `sve.max_vl` both choose the set; give one")
        if self.vls is not None and not self.vls:
            raise UsageError("`sve.vls`: the set is empty", hint="`sve.off`=True runs without SVE")

    @property
    def wanted(self) -> str:
        """The field that asks for SVE, with its value; empty if none does."""
        if self.vls is not None:
            return "`sve.vls`=" + ",".join(map(str, sorted(self.vls)))
        if self.max_vl is not None:
            return f"`sve.max_vl`={self.max_vl}"
        return "`sve.required`" if self.required else ""


class CpuRequest(Record, kw_only=True):
    """What is asked of the vCPUs beside SVE.

    ``mte`` and ``pvtime`` are given where the host has them, unless False; the others are an
    error where it has not.

    Raises: UsageError, when two requests contradict each other.
    """

    pmu: bool = False
    nested: bool = False  # the guest starts in EL2
    e2h0: bool = False  # an EL2 without VHE
    aarch32: bool = False  # the guest starts in 32-bit state
    mte: bool = True
    pvtime: bool = True

    def __post_init__(self) -> None:
        if self.e2h0 and not self.nested:
            raise UsageError("`cpu.e2h0` is about the guest's EL2; give `cpu.nested` too")
        if self.aarch32 and self.nested:
            raise UsageError("`cpu.aarch32` and `cpu.nested` contradict each other: EL2 is 64-bit")


class Config(Record, kw_only=True):
    """One machine: what it boots, how large it is, and how long it may take.

    ``vcpus``, ``memory`` (bytes) and ``irqchip`` left as None take lkvm's defaults: see
    default_vcpus() and default_memory(), and the best GIC the host has. ``vcpu_affinity`` are the
    host's CPUs that vCPUs may run on, ``hugetlbfs`` where guest RAM comes from, if not None.
    ``kaslr_seed`` and ``timer_hz`` go to the device tree, if not None. ``ttys`` are the terminals
    put on pseudo-terminals: 0 is the console, 1 to 3 are the other UARTs. ``devices`` are virtio
    devices in the order of their slots, after a virtio console.

    Raises: UsageError, for what makes no sense on any machine.
    """

    image: Path
    vcpus: int | None = None
    memory: int | None = None
    ram_base: int = RAM_BASE
    sve: SveRequest = SveRequest()
    cpu: CpuRequest = CpuRequest()
    irqchip: str | None = None
    params: str = ""
    nodefaults: bool = False
    console: str = "serial"
    virtio_transport: str = "mmio"
    initrd: Path | None = None
    kaslr_seed: int | None = None
    timer_hz: int | None = None
    vcpu_affinity: frozenset[int] | None = None
    hugetlbfs: Path | None = None
    ttys: frozenset[int] = frozenset()
    devices: tuple[DeviceConfig, ...] = ()
    name: str = made(lambda: f"guest-{os.getpid()}")
    timeout_s: float | None = None
    fast_mmio: bool = True

    def __post_init__(self) -> None:
        if self.vcpus is not None and self.vcpus < 1:
            raise UsageError(f"`vcpus`={self.vcpus}: a machine needs at least 1 vCPU")
        if self.memory is not None and self.memory < 1:
            raise UsageError(f"`memory`={self.memory}: a machine needs memory")
        if self.memory is not None and self.memory % PAGE:
            raise UsageError(
                f"`memory`: {show_size(self.memory)} is not a whole number of 4 KiB pages"
            )
        if self.ram_base < RAM_BASE or self.ram_base % RAM_ALIGN:
            raise UsageError(
                f"`ram_base`={self.ram_base:#x}: RAM starts at {RAM_BASE:#x} or higher, "
                f"at a multiple of {show_size(RAM_ALIGN)}"
            )
        if self.timeout_s is not None and not 0 < self.timeout_s < float("inf"):
            raise UsageError(f"`timeout_s`={self.timeout_s:g}: needs a time above 0 s")
        if self.name[:1] in ("", ".") or not all(c.isalnum() or c in NAME for c in self.name):
            raise UsageError(
                f"`name`={self.name!r}: not a name for a VM",
                hint="use letters, digits and - _ . + : @, and no dot in front",
            )
        if "\0" in self.params:
            raise UsageError("`params`: a kernel command line cannot hold a NUL")
        self._check_choices()

    def _check_choices(self) -> None:
        if self.console not in CONSOLES:
            raise UsageError(f"`console`={self.console}: not one of {', '.join(CONSOLES)}")
        if self.virtio_transport not in TRANSPORTS:
            raise UsageError(
                f"`virtio_transport`={self.virtio_transport}: not one of {', '.join(TRANSPORTS)}"
            )
        if self.irqchip is not None and self.irqchip not in IRQCHIPS:
            raise UsageError(f"`irqchip`={self.irqchip}: not one of {', '.join(IRQCHIPS)}")
        if self.kaslr_seed is not None and not 0 <= self.kaslr_seed <= UINT64:
            raise UsageError(f"`kaslr_seed`={self.kaslr_seed:#x}: needs a number of 64 bits")
        if self.timer_hz is not None and not 0 < self.timer_hz < 1 << 32:
            raise UsageError(f"`timer_hz`={self.timer_hz}: needs a frequency in Hz")
        room = VIRTIO_COUNT - (self.console == "virtio")
        if len(self.devices) > room:
            raise UsageError(f"{len(self.devices)} devices: there is room for {room}")
        for device in self.devices:
            self._check_device(device)
        for number in self.ttys - TERMINALS:
            raise UsageError(f"`ttys`={number}: a guest has terminals 0 to {max(TERMINALS)}")
        if self.cpu.aarch32 and self.sve.wanted:
            raise UsageError(
                f"`cpu.aarch32` and {self.sve.wanted} contradict each other: SVE is 64-bit"
            )

    def _check_device(self, device: DeviceConfig) -> None:
        if device.single and sum(type(other) is type(device) for other in self.devices) > 1:
            raise UsageError(f"{device}: there can be one")
        if device.modern and self.virtio_transport == "mmio-legacy":
            raise UsageError(f"{device}: there is no such device with a legacy transport")
        if device.unmaps and self.hugetlbfs is not None:
            raise UsageError(
                f"{device} and `hugetlbfs`: pages from there are reserved, and stay the guest's",
                hint="leave `hugetlbfs` out: guest memory then has transparent huge pages",
            )


def default_vcpus(limit: int) -> int:
    """As many vCPUs as the host has CPUs online, at most ``limit``."""
    return min(os.sysconf("SC_NPROCESSORS_ONLN"), limit)


def default_memory(vcpus: int) -> int:
    """64 MiB for each vCPU and for three more, at most 80 % of the host's memory."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(64 * MIB * (vcpus + 3), host * 4 // 5 // MIB * MIB)
