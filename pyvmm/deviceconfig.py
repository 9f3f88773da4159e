"""The virtio devices a machine is to have: plain data, one class a kind of device.

A kind that needs guest physical addresses of its own says how many; the machine finds them above
RAM. What only a host can refuse is checked when the device is made.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from pyvmm.base.records import Record
from pyvmm.base.units import show_size
from pyvmm.errors import UsageError
from pyvmm.layout import MIB, WINDOW_ALIGN

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
        """The option that asks for the device, as the user would write it."""
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
        """The option."""
        return f"-d {self.path}{',ro' * self.read_only}{',direct' * self.direct}"

    def files(self) -> tuple[Path, ...]:
        """The image."""
        return (self.path,)


class Pmem(DeviceConfig, kw_only=True):
    """Persistent memory: a file that the guest reads and writes as memory."""

    maps_file: ClassVar[bool] = True

    path: Path
    read_only: bool = False

    def __str__(self) -> str:
        """The option."""
        return f"--pmem {self.path}{',ro' * self.read_only}"

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
            raise UsageError(f"--pmem {self.path}: {error.strerror}") from error
        if not size or size % PMEM_UNIT:
            raise UsageError(
                f"--pmem {self.path}: {show_size(size)} are not a whole number of "
                f"{show_size(PMEM_UNIT)}",
                hint=f"truncate -s %{PMEM_UNIT >> 20}M {self.path} adds what is missing",
            )
        return size


class Rng(DeviceConfig, kw_only=True):
    """Entropy from this machine's kernel."""

    def __str__(self) -> str:
        """The option."""
        return "--rng"


class Balloon(DeviceConfig, kw_only=True):
    """A balloon: the guest gives up memory when it is asked to."""

    single: ClassVar[bool] = True
    unmaps: ClassVar[bool] = True

    def __str__(self) -> str:
        """The option."""
        return "--balloon"


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
                f"--hotplug: blocks of {show_size(block)}: they have a power of two from "
                f"{show_size(BLOCK)} to {show_size(WINDOW_ALIGN)}"
            )
        if self.size <= 0 or self.size % block:
            raise UsageError(
                f"--hotplug {show_size(self.size)}: not a whole number of blocks of "
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
        """The option."""
        block = "" if self.block_size is None else f",block={self.block_size >> 20}M"
        return f"--hotplug {show_size(self.size)}{block}"

    def window_size(self) -> int:
        """As much as there can ever be."""
        return self.size
