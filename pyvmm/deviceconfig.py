"""The virtio devices a machine is to have: plain data, one class a kind of device.

A kind that needs guest physical addresses of its own says how many; the machine finds them above
RAM. What only a host can refuse is checked when the device is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """The base of what may stand in ``Config.devices``."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rng(DeviceConfig):
    """Entropy from this machine's kernel."""

    def __str__(self) -> str:
        """The option."""
        return "--rng"
