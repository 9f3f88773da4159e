"""Resizing a running machine's memory, by its balloon and its virtio-mem device.

Sizes are in bytes. Each request returns at once; the guest carries it out later, as far as it can.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from pyvmm.base.units import show_size
from pyvmm.errors import UsageError, VmmError

if TYPE_CHECKING:  # imported lazily: few machines have such devices
    from pyvmm.devices.virtio.balloon import VirtioBalloon
    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.devices.virtio.mem import VirtioMem

STATISTICS_S: Final = 0.3  # the timeout of a guest's statistics


class Resizing:
    """The memory size of a machine: ``ram`` bytes of fixed RAM, changed by devices."""

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
        """The guest's memory, with the pages in the balloon."""
        return self._ram + (self._mem.plugged_size if self._mem is not None else 0)

    def adopt(self, other: Resizing) -> None:
        """Repeat the requests that ``other`` got: it is the same VM before its reboot."""
        if self._balloon is not None and other._balloon is not None:
            self._balloon.request(other._balloon.num_pages)
        if self._mem is not None and other._mem is not None:
            self._mem.request(other._mem.requested_size)

    def balloon_info(self) -> dict[str, Any] | None:
        """Describe the balloon as JSON values, if there is one."""
        return None if self._balloon is None else self._balloon.info()

    def plugged_info(self) -> dict[str, Any] | None:
        """Describe the pluggable memory as JSON values, if there is some."""
        return None if self._mem is None else {"ram_bytes": self._ram, **self._mem.info()}

    def statistics(self, timeout_s: float = STATISTICS_S) -> dict[str, Any] | None:
        """Ask the guest for its statistics and wait for a short time; None if it sends none.

        Do not call this in a vCPU's thread.
        """
        if self._balloon is None:
            return None
        found = self._balloon.refresh_statistics(timeout_s)
        if found is None:
            return None
        return {**found.values, "age_s": round(self._balloon.clock() - found.at, 3)}

    def plugged_host_range(self) -> tuple[int, int] | None:
        """Return the address and size of the pluggable memory in this process."""
        if self._mem is None:
            return None
        backing = self._mem.blocks.backing
        return backing.host_address, backing.size

    def resize_balloon(self, size: int) -> None:
        """Ask the guest to put that much memory in the balloon, in total.

        Raises: UsageError, if there is no balloon, or less memory.
        """
        from pyvmm.devices.virtio.balloonpages import PAGE

        balloon = self._has_balloon()
        if size % PAGE:
            raise UsageError(f"{show_size(size)}: a balloon has whole pages of {show_size(PAGE)}")
        if size < 0:
            raise UsageError(
                f"the balloon's requested size is {show_size(balloon.num_pages * PAGE)}: "
                f"it cannot be made {show_size(balloon.num_pages * PAGE - size)} smaller"
            )
        if size > self.size:
            raise UsageError(
                f"a balloon of {show_size(size)} is more than the guest has: {show_size(self.size)}"
            )
        balloon.request(size // PAGE)

    def inflate_balloon(self, more: int) -> None:
        """Ask for a larger balloon, or with a negative number for a smaller one.

        Raises: UsageError, see resize_balloon().
        """
        from pyvmm.devices.virtio.balloonpages import PAGE

        self.resize_balloon(self._has_balloon().num_pages * PAGE + more)

    def collect_free_pages(self) -> None:
        """Ask the guest once for its free pages, and return those to the host.

        Raises:
            UsageError: there is no balloon.
            VmmError: the guest's driver cannot report free pages, or a report is in progress.
        """
        balloon = self._has_balloon()
        if not balloon.start_hinting():
            reason = "is reporting them" if balloon.is_hinting else "has no driver for that"
            raise VmmError(f"cannot ask the guest for its free pages: it {reason}")

    def stop_collecting(self) -> None:
        """End a report that collect_free_pages() has started."""
        self._has_balloon().stop_hinting()

    def resize_memory(self, size: int) -> None:
        """Ask the guest to plug or unplug memory until it has that size, RAM included.

        Raises: UsageError, if there is no room for it.
        """
        mem = self._mem
        if mem is None:
            raise UsageError(
                "the VM has no room for more memory", hint="start it with `devices.hotplug`=SIZE"
            )
        if size < self._ram:
            raise UsageError(
                f"{show_size(size)} is less than the guest's RAM, which cannot be unplugged: "
                f"{show_size(self._ram)}",
                hint="use a balloon to take back RAM: start the VM with `devices.balloon`",
            )
        most = self._ram + mem.region_size
        if size > most:
            raise UsageError(
                f"{show_size(size)} is more than there is room for: {show_size(self._ram)} of RAM "
                f"and `devices.hotplug`={show_size(mem.region_size)}, {show_size(most)} in all"
            )
        if (size - self._ram) % mem.block_size:
            raise UsageError(
                f"{show_size(size)}: memory is plugged in blocks of {show_size(mem.block_size)} "
                f"beside {show_size(self._ram)} of RAM"
            )
        mem.request(size - self._ram)

    def _has_balloon(self) -> VirtioBalloon:
        if self._balloon is None:
            raise UsageError("the VM has no balloon", hint="start it with `devices.balloon`")
        return self._balloon
