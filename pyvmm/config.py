"""The description of a machine: plain data, checked for errors that no host accepts.

The machine checks the host's limits (vCPUs, address bits, vector lengths) when it is made.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from pyvmm.base.paths import check_path, is_storage, is_utf8
from pyvmm.base.records import Record, made
from pyvmm.base.units import show_size
from pyvmm.errors import UsageError
from pyvmm.layout import MIB, RAM_BASE, UART_COUNT, VIRTIO_COUNT, WINDOW_ALIGN

PAGE = 4096
RAM_ALIGN = 2 * MIB  # Source: Linux, Documentation/arch/arm64/booting.rst
CONSOLES = ("serial", "virtio", "hv")
TRANSPORTS = ("mmio", "mmio-legacy")
IRQCHIPS = ("gicv3", "gicv3-its", "gicv2")
CHOICES = {"console": CONSOLES, "virtio_transport": TRANSPORTS, "irqchip": IRQCHIPS}
TERMINALS = frozenset(range(UART_COUNT))
NAME = frozenset("_.+:@-")  # and letters and digits: safe in file names and shells
UINT64 = (1 << 64) - 1
MOST_NAME = 60  # characters of REGISTER.FIELD
MOST_CPUS = 100_000  # of a host: CPU numbers have at most five digits

BLOCK = 2 * MIB  # the smallest block of plugged memory: a huge page
BLOCKS = 1024  # the most blocks by default: each is a memory slot of KVM

VHOST_VSOCK = Path("/dev/vhost-vsock")
MOST_TAG = 36  # bytes.  Source: VIRTIO 1.2, 5.11.4
PMEM_UNIT = 2 * MIB  # Linux maps devices' memory in subsections (SUBSECTION_SHIFT)


class DeviceConfig(Record, kw_only=True):
    """The base of devices in ``Config.devices``.

    ``single``: a machine has at most one. ``modern``: it needs a transport that is not legacy.
    ``unmaps``: it returns memory to the host, unlike a hugetlbfs. ``maps_file``: it maps a file.
    ``vhost``: its back end has all of guest memory. ``nodes``: the device files that it opens.
    ``shares_memory``: its back end is another process.
    """

    single: ClassVar[bool] = False
    modern: ClassVar[bool] = False
    unmaps: ClassVar[bool] = False
    maps_file: ClassVar[bool] = False
    vhost: ClassVar[bool] = False
    nodes: ClassVar[tuple[Path, ...]] = ()
    shares_memory: ClassVar[bool] = False

    def __str__(self) -> str:
        """Return the field and its value, as errors show the device."""
        raise NotImplementedError

    def window_size(self) -> int:
        """Return how many guest physical addresses above RAM the device needs.

        Raises: VmmError, if its file is missing or does not fit.
        """
        return 0

    def files(self) -> tuple[Path, ...]:
        """Return its files."""
        return ()


class Disk(DeviceConfig, kw_only=True):
    """A disk: a raw image or a block device; ``direct`` bypasses this machine's page cache."""

    path: Path
    read_only: bool = False
    direct: bool = False

    def __post_init__(self) -> None:
        check_path(self.path, "`devices.disk`")

    def __str__(self) -> str:
        """Return the field and its value."""
        return f"`devices.disk`={self.path}{',ro' * self.read_only}{',direct' * self.direct}"

    def files(self) -> tuple[Path, ...]:
        """Return the image."""
        return (self.path,)


class Pmem(DeviceConfig, kw_only=True):
    """Persistent memory: a file that the guest reads and writes as memory."""

    maps_file: ClassVar[bool] = True

    path: Path
    read_only: bool = False

    def __post_init__(self) -> None:
        check_path(self.path, "`devices.pmem`")

    def __str__(self) -> str:
        """Return the field and its value."""
        return f"`devices.pmem`={self.path}{',ro' * self.read_only}"

    def files(self) -> tuple[Path, ...]:
        """Return the file."""
        return (self.path,)

    def window_size(self) -> int:
        """Return the file's size.

        Raises: UsageError, if the file is missing, or Linux cannot map its size.
        """
        try:
            if not is_storage(self.path.stat().st_mode):
                raise UsageError(f"`devices.pmem`={self.path}: neither a file nor a block device")
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                size = os.lseek(fd, 0, os.SEEK_END)
            finally:
                os.close(fd)
        except OSError as error:
            raise UsageError(f"`devices.pmem`={self.path}: {error.strerror}") from error
        if not size or size % PMEM_UNIT:
            raise UsageError(
                f"`devices.pmem`={self.path}: {show_size(size)} is not a multiple of "
                f"{show_size(PMEM_UNIT)}",
                hint=f"truncate -s %{PMEM_UNIT >> 20}M {self.path} rounds the size up",
            )
        return size


class Rng(DeviceConfig, kw_only=True):
    """A source of entropy: this machine's kernel."""

    def __str__(self) -> str:
        """Return the field and its value."""
        return "`devices.rng`"


class Vsock(DeviceConfig, kw_only=True):
    """Sockets between the guest and its host; ``cid`` is the guest's address.

    Raises: UsageError, for a CID that no guest can have.
    """

    single: ClassVar[bool] = True
    modern: ClassVar[bool] = True
    vhost: ClassVar[bool] = True
    nodes: ClassVar[tuple[Path, ...]] = (VHOST_VSOCK,)

    cid: int

    def __post_init__(self) -> None:
        if not 2 < self.cid < 0xFFFF_FFFF:  # Source: linux/vm_sockets.h, VMADDR_CID_HOST, _ANY
            raise UsageError(f"{self}: guests have CIDs from 3 to {0xFFFF_FFFE}")

    def __str__(self) -> str:
        """Return the field and its value."""
        return f"`devices.vsock`={self.cid}"


class Share(DeviceConfig, kw_only=True):
    """A directory, which the guest mounts by ``tag`` as a virtiofs.

    ``program`` is the command of virtiofsd, without arguments.

    Raises: UsageError, for a tag that is empty or too long.
    """

    modern: ClassVar[bool] = True
    vhost: ClassVar[bool] = True
    shares_memory: ClassVar[bool] = True

    path: Path
    tag: str
    read_only: bool = False
    program: tuple[str, ...] = ("virtiofsd",)

    def __post_init__(self) -> None:
        check_path(self.path, "`devices.share`")
        if not 0 < len(self.tag.encode()) <= MOST_TAG or "\0" in self.tag:
            raise UsageError(f"{self}: a tag has 1 to {MOST_TAG} bytes")

    def __str__(self) -> str:
        """Return the field and its value."""
        return f"`devices.share`={self.path},{self.tag}{',ro' * self.read_only}"

    def files(self) -> tuple[Path, ...]:
        """Return the directory."""
        return (self.path,)


class Balloon(DeviceConfig, kw_only=True):
    """A balloon: the guest gives up memory on request."""

    single: ClassVar[bool] = True
    unmaps: ClassVar[bool] = True

    def __str__(self) -> str:
        """Return the field and its value."""
        return "`devices.balloon`"


class Hotplug(DeviceConfig, kw_only=True):
    """Room for memory that the guest plugs in blocks while it runs.

    A ``block_size`` of None is 2 MiB, or more to have at most 1024 blocks.

    Raises: UsageError, for invalid sizes.
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
                f"`devices.hotplug`: blocks of {show_size(block)}: their size is a power of two "
                f"from {show_size(BLOCK)} to {show_size(WINDOW_ALIGN)}"
            )
        if self.size <= 0 or self.size % block:
            raise UsageError(
                f"`devices.hotplug`={show_size(self.size)}: not a multiple of its blocks of "
                f"{show_size(block)}"
            )

    @property
    def block(self) -> int:
        """The size of a block in bytes."""
        if self.block_size is not None:
            return self.block_size
        enough = 1 << (max(1, -(-self.size // BLOCKS)) - 1).bit_length()
        return min(max(BLOCK, enough), WINDOW_ALIGN)

    def __str__(self) -> str:
        """Return the field and its value."""
        block = "" if self.block_size is None else f",block={self.block_size >> 20}M"
        return f"`devices.hotplug`={show_size(self.size)}{block}"

    def window_size(self) -> int:
        """Return the most memory that can be plugged."""
        return self.size


class SveRequest(Record, kw_only=True):
    """A request for SVE vector lengths, in bits; the default is all that the host has.

    ``vls`` asks for exactly that set, ``max_vl`` for every length of the host up to it.
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
        """The field that asks for SVE, with its value; empty if there is none."""
        if self.vls is not None:
            return "`sve.vls`=" + ",".join(map(str, sorted(self.vls)))
        if self.max_vl is not None:
            return f"`sve.max_vl`={self.max_vl}"
        return "`sve.required`" if self.required else ""


class CpuRequest(Record, kw_only=True):
    """A request for features of the vCPUs other than SVE.

    The guest gets ``mte``, ``pauth`` and ``pvtime`` where the host has them, unless they are False.
    A host that lacks one of the others is an error. ``ids`` are fields of ID registers with the
    values that the guest reads, as {"ID_AA64ISAR0_EL1.SHA3": 0}.

    Raises: UsageError, when two requests contradict each other.
    """

    pmu: bool = False
    nested: bool = False  # the guest starts in EL2
    e2h0: bool = False  # an EL2 without VHE
    aarch32: bool = False  # the guest starts in 32-bit state
    mte: bool = True
    pvtime: bool = True
    pauth: bool = True  # pointer authentication
    ids: dict[str, int] = made(dict)

    def __post_init__(self) -> None:
        for name, value in self.ids.items():
            register, dot, field = name.partition(".")
            if not (register and dot and field and name.isprintable() and len(name) <= MOST_NAME):
                raise UsageError(f"`cpu.ids`: {name[:MOST_NAME]!r} is not REGISTER.FIELD")
            if not 0 <= value <= UINT64:
                raise UsageError(f"`cpu.ids`: {name}={value:#x} needs a number of 64 bits")
        if self.ids and self.aarch32:
            raise UsageError("`cpu.ids` and `cpu.aarch32`: KVM fixes the ID registers of both")
        if self.e2h0 and not self.nested:
            raise UsageError("`cpu.e2h0` is about the guest's EL2; give `cpu.nested` too")
        if self.aarch32 and self.nested:
            raise UsageError("`cpu.aarch32` and `cpu.nested` contradict each other: EL2 is 64-bit")


class Config(Record, kw_only=True):
    """The description of one machine.

    None stands for a default. For ``vcpus`` and ``memory`` (in bytes) it is lkvm's default, see
    default_vcpus() and default_memory(); for ``irqchip`` it is the host's best. vCPUs run on the
    host's CPUs in ``vcpu_affinity``. ``hugetlbfs`` is the directory that guest RAM comes from.
    ``kaslr_seed`` and ``timer_hz`` go to the device tree. ``ttys`` are the terminals on
    pseudo-terminals: 0 is the console, 1 to 3 are the other UARTs. ``devices`` are virtio devices
    in the order of their slots, after a virtio console.

    Raises: UsageError, for a machine that no host can make.
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
    vmgenid: bool = True  # a VM generation ID

    def __post_init__(self) -> None:
        if self.vcpus is not None and self.vcpus < 1:
            raise UsageError(f"`vcpus`={self.vcpus}: a machine needs at least 1 vCPU")
        if self.memory is not None and self.memory < 1:
            raise UsageError(f"`memory`={self.memory}: a machine needs memory")
        if self.memory is not None and self.memory % PAGE:
            raise UsageError(f"`memory`: {show_size(self.memory)} is not a multiple of 4 KiB")
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
                hint="use letters, digits and - _ . + : @, and do not begin with a dot",
            )
        if "\0" in self.params:
            raise UsageError("`params`: a kernel command line cannot hold a NUL")
        if not is_utf8(self.params):
            raise UsageError(f"`params`={self.params[:40]!r}: a kernel command line is UTF-8 text")
        for field in ("image", "initrd", "hugetlbfs"):
            if (path := getattr(self, field)) is not None:
                check_path(path, f"`{field}`")
        self._check_choices()

    @property
    def shares_memory(self) -> bool:
        """Whether guest memory is shared with other processes."""
        return any(device.shares_memory for device in self.devices)

    def _check_choices(self) -> None:
        for field, choices in CHOICES.items():
            chosen = getattr(self, field)
            if chosen is not None and chosen not in choices:
                raise UsageError(f"`{field}`={chosen}: not one of {', '.join(choices)}")
        if self.kaslr_seed is not None and not 0 <= self.kaslr_seed <= UINT64:
            raise UsageError(f"`kaslr_seed`={self.kaslr_seed:#x}: needs a number of 64 bits")
        if self.timer_hz is not None and not 0 < self.timer_hz < 1 << 32:
            raise UsageError(f"`timer_hz`={self.timer_hz}: needs a frequency in Hz")
        for cpu in self.vcpu_affinity or ():
            if not 0 <= cpu < MOST_CPUS:
                raise UsageError(
                    f"`vcpu_affinity`={cpu}: CPUs have numbers from 0 to {MOST_CPUS - 1}"
                )
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
            raise UsageError(f"{device}: there can be only one")
        if device.modern and self.virtio_transport == "mmio-legacy":
            raise UsageError(f"{device}: the legacy transport has no such device")
        if device.vhost and any(isinstance(other, Hotplug) for other in self.devices):
            raise UsageError(
                f"{device} and `devices.hotplug`: vhost would have the memory that is not plugged"
            )
        if device.shares_memory and self.hugetlbfs is not None:
            raise UsageError(f"{device} and `hugetlbfs` do not work together yet")
        if device.unmaps and self.hugetlbfs is not None:
            raise UsageError(
                f"{device} and `hugetlbfs`: the guest cannot return pages of a hugetlbfs",
                hint="leave `hugetlbfs` out: guest memory then has transparent huge pages",
            )


def default_vcpus(limit: int) -> int:
    """Return the number of the host's online CPUs, at most ``limit``."""
    return min(os.sysconf("SC_NPROCESSORS_ONLN"), limit)


def default_memory(vcpus: int) -> int:
    """Return 64 MiB times (vCPUs + 3), but at most 80 % of the host's memory."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(64 * MIB * (vcpus + 3), host * 4 // 5 // MIB * MIB)
