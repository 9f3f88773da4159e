"""Clones: VMs from one snapshot that run at the same time."""

from __future__ import annotations

from pyvmm import layout
from pyvmm.machine.vmgenid import SPI
from pyvmm.snapshot.gic import uses_spi
from pyvmm.snapshot.state import State


def warning(state: State) -> str:
    """Return why clones of a guest give the same random numbers, or an empty text.

    A guest notices that it is a clone by its VM generation ID: see machine/vmgenid.py.
    """
    same = "each clone gives the random numbers that the others give"
    if all(area.name != layout.VMGENID.name for area in state.memory):
        return f"the guest has no VM generation ID: {same}"
    if not uses_spi(state.gic, SPI):
        return (
            f"the guest does not use its VM generation ID, as Linux 6.10 and later do: {same}, "
            "until it gets other entropy"
        )
    return ""
