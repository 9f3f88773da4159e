"""A running machine's memory made less or more: what may be asked of its balloon and virtio-mem.

Sizes are in bytes. The guest does what it can, and takes its time: each of these returns at once,
and says how things stand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from pyvmm.base.units import show_size
from pyvmm.errors import UsageError, VmmError

if TYPE_CHECKING:  # a machine without such devices does without their modules
    from pyvmm.devices.virtio.balloon import VirtioBalloon
    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.devices.virtio.mem import VirtioMem

PATIENCE_S: Final = 0.3  # for a guest's statistics


class Resizing:
    """The memory of a machine: ``ram`` bytes that are always there, and what its devices do."""

    def __init__(self, ram: int, devices: Iterable[VirtioDevice]) -> None:
        self._ram = ram
        self._balloon: VirtioBalloon | None = None
        self._mem: VirtioMem | None = None
        for device in devices:
            self._find(device)

    def _find(self, device: VirtioDevice) -> None:
        from pyvmm.devices.virtio.balloon import VirtioBalloon
        from pyvmm.devices.virtio.mem import VirtioMem

        if isinstance(device, VirtioBalloon):
            self._balloon = device
        elif isinstance(device, VirtioMem):
            self._mem = device

    @property
    def size(self) -> int:
        """How much memory the guest has; what is in the balloon counts too."""
        return self._ram + (self._mem.plugged_size if self._mem is not None else 0)

    def adopt(self, other: Resizing) -> None:
        """Ask for what was asked for there: of this machine before it was started anew, say."""
        if self._balloon is not None and other._balloon is not None:
            self._balloon.ask(other._balloon.num_pages)
        if self._mem is not None and other._mem is not None:
            self._mem.ask(other._mem.requested_size)

    def balloon_info(self) -> dict[str, Any] | None:
        """The balloon as JSON has it, if there is one."""
        return None if self._balloon is None else self._balloon.info()

    def plugged_info(self) -> dict[str, Any] | None:
        """The memory that can be plugged as JSON has it, if there is some."""
        return None if self._mem is None else {"ram_bytes": self._ram, **self._mem.info()}

    def statistics(self, patience_s: float = PATIENCE_S) -> dict[str, Any] | None:
        """What the guest says of its memory, waited for a little; None where it says nothing.

        Not from a vCPU's thread.
        """
        if self._balloon is None:
            return None
        found = self._balloon.refresh_statistics(patience_s)
        if found is None:
            return None
        return {**found.values, "age_s": round(self._balloon.clock() - found.at, 3)}

    def plugged_host_range(self) -> tuple[int, int] | None:
        """Where the memory that can be plugged is in this process, and how much."""
        if self._mem is None:
            return None
        backing = self._mem.blocks.backing
        return backing.host_address, backing.size

    def resize_balloon(self, size: int) -> None:
        """Ask the guest to give up that much memory, all in all.

        Raises: UsageError, where there is no balloon, or not so much memory.
        """
        from pyvmm.devices.virtio.balloonpages import PAGE

        balloon = self._has_balloon()
        if size % PAGE:
            raise UsageError(f"a balloon of {show_size(size)}: it has pages of {show_size(PAGE)}")
        if size < 0:
            raise UsageError(
                f"the balloon was asked for {show_size(balloon.num_pages * PAGE)}: it cannot be "
                f"made {show_size(balloon.num_pages * PAGE - size)} smaller"
            )
        if size > self.size:
            raise UsageError(
                f"a balloon of {show_size(size)} is more than the guest has: {show_size(self.size)}"
            )
        balloon.ask(size // PAGE)

    def inflate_balloon(self, more: int) -> None:
        """Ask for that much more than before; negative for less.

        Raises: UsageError, see resize_balloon().
        """
        from pyvmm.devices.virtio.balloonpages import PAGE

        self.resize_balloon(self._has_balloon().num_pages * PAGE + more)

    def collect_free_pages(self) -> None:
        """Ask the guest once which pages it does not use, and give those back to the host.

        Raises:
            UsageError: there is no balloon.
            VmmError: the guest's driver gives no hints, or gives them right now.
        """
        balloon = self._has_balloon()
        if not balloon.start_hinting():
            why = "is about it already" if balloon.is_hinting else "has no driver that does that"
            raise VmmError(f"the guest was to say which pages are free: it {why}")

    def stop_collecting(self) -> None:
        """End a round of collect_free_pages() that takes too long."""
        self._has_balloon().stop_hinting()

    def resize_memory(self, size: int) -> None:
        """Ask the guest to have that much memory: its RAM, and what is to be plugged beside it.

        Raises: UsageError, where there is no room for it.
        """
        mem = self._mem
        if mem is None:
            raise UsageError(
                "the VM has no room for more memory", hint="start it with --hotplug SIZE"
            )
        if size < self._ram:
            raise UsageError(
                f"{show_size(size)} is less than the RAM the guest began with, which stays: "
                f"{show_size(self._ram)}",
                hint="a balloon takes memory of that back: pyvmm run --balloon",
            )
        most = self._ram + mem.region_size
        if size > most:
            raise UsageError(
                f"{show_size(size)} is more than there is room for: {show_size(self._ram)} of RAM "
                f"and --hotplug {show_size(mem.region_size)}, {show_size(most)} in all"
            )
        if (size - self._ram) % mem.block_size:
            raise UsageError(
                f"{show_size(size)}: memory is plugged in blocks of {show_size(mem.block_size)} "
                f"beside {show_size(self._ram)} of RAM"
            )
        mem.ask(size - self._ram)

    def _has_balloon(self) -> VirtioBalloon:
        if self._balloon is None:
            raise UsageError("the VM has no balloon", hint="start it with --balloon")
        return self._balloon
