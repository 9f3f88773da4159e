"""The warning about clones that generate the same random numbers."""

from __future__ import annotations

import pytest

from pyvmm.layout import NR_IRQS
from pyvmm.snapshot.clones import warning
from pyvmm.snapshot.gic import PARTS, names
from pyvmm.snapshot.state import GicBlock, State
from tests.snapshot import sample

SAME = "clones generate the same random numbers"


def with_id(enabled: int) -> State:
    """Return a guest with a VM generation ID, and with those of SPI 192 to 223 enabled."""
    state = sample.state()
    dist = GicBlock(part="dist", vcpu=None, registers={0x100 + 4 * 7: enabled})
    others = tuple(block for block in state.gic.blocks if block.part != "dist")
    gic = state.gic.replace(blocks=(*others, dist))
    return state.replace(memory=(*state.memory, sample.GENERATION_ID), gic=gic)


def test_guest_without_the_device_is_named() -> None:
    assert warning(sample.state()) == f"the guest has no VM generation ID: {SAME}"


def test_guest_without_a_driver_is_named() -> None:
    assert warning(with_id(0xFFFF_FFFF & ~(1 << 30))) == (
        "the guest does not use its VM generation ID (Linux does since 6.10): "
        f"{SAME}, until they get other entropy"
    )


def test_guest_whose_driver_has_the_interrupt_needs_no_warning() -> None:
    assert warning(with_id(1 << 30)) == ""


@pytest.mark.parametrize("kind", PARTS)
def test_snapshot_of_each_gic_has_the_enable_bit_that_the_warning_reads(kind: str) -> None:
    assert names(kind, "dist", NR_IRQS)[0x100 + 4 * 7] == "GICD_ISENABLER7"
