"""Clones: VMs from one snapshot that run at the same time."""

from __future__ import annotations

from pyvmm import layout
from pyvmm.machine.vmgenid import SPI
from pyvmm.snapshot.gic import uses_spi
from pyvmm.snapshot.state import State


def warning(state: State) -> str:
    """Return why clones of a guest generate the same random numbers, or an empty text.

    A guest notices that it is a clone by its VM generation ID: see machine/vmgenid.py.
    """
    same = "clones generate the same random numbers"
    if all(area.name != layout.VMGENID.name for area in state.memory):
        return f"the guest has no VM generation ID: {same}"
    if not uses_spi(state.gic, SPI):
        return (
            f"the guest does not use its VM generation ID (Linux does since 6.10): {same}, "
            "until they get other entropy"
        )
    return ""
