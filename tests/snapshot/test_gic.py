"""The order and the bits in which a GIC's registers are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from pyvmm.kvm.vgic import VgicV2
from pyvmm.machine.irqchip import Irqchip
from pyvmm.snapshot import gic
from pyvmm.snapshot.gic import V2_PRIVATE, GicRegisters, Part

ISPENDR, SPENDSGIR = 0x200, 0xF20


class Written:
    """A GIC's registers that notes what is written."""

    nr_irqs = 64

    def __init__(self) -> None:
        self.values: dict[int, int] = {}

    def read(self, part: Part, vcpu: int | None, numbers: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(numbers, 0)

    def write(self, part: Part, vcpu: int | None, values: Mapping[int, int]) -> None:
        self.values.update(values)


def test_pending_sgis_of_a_gicv2_are_restored_by_their_senders_alone() -> None:
    written = Written()
    saved = {ISPENDR: 0x0800_0008, SPENDSGIR: 0x0100_0000}  # PPI 27, and SGI 3 from CPU 0
    irqchip = Irqchip("gicv2", cast(VgicV2, None))

    gic._restore_part(cast(GicRegisters, written), V2_PRIVATE, 1, saved, irqchip)

    assert written.values[ISPENDR] == 0x0800_0000
    assert written.values[SPENDSGIR] == 0x0100_0000
