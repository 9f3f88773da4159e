"""The registers of hardware breakpoints and watchpoints; a CPU takes them in test_live.py."""

from __future__ import annotations

import pytest

from pyvmm.debugger.points import Kind, Point, breakpoint_registers, watchpoint_registers
from pyvmm.errors import VmmError


def test_breakpoint_covers_one_instruction_at_el1_and_el0() -> None:
    point = Point(Kind.HARDWARE, 0xFFFF_8000_0001_0004, 4)

    assert breakpoint_registers(point) == (0x1E7, 0xFFFF_8000_0001_0004)


@pytest.mark.parametrize(
    ("kind", "address", "length", "control", "value"),
    [
        (Kind.WRITE, 0x1000, 8, 0x1FF7, 0x1000),
        (Kind.READ, 0x1000, 4, 0x1EF, 0x1000),
        (Kind.ACCESS, 0x1004, 4, 0x1E1F, 0x1000),
        (Kind.WRITE, 0x1003, 1, 0x117, 0x1000),
        (Kind.WRITE, 0x2000, 64, 0x0600_1FF7, 0x2000),
    ],
)
def test_watchpoint_selects_the_bytes(
    kind: Kind, address: int, length: int, control: int, value: int
) -> None:
    assert watchpoint_registers(Point(kind, address, length)) == (control, value)


@pytest.mark.parametrize(("address", "length"), [(0x1004, 8), (0x1000, 0), (0x1000, 24),
                                                 (0x1008, 16), (0, 1 << 32)])  # fmt: skip
def test_watchpoint_refuses_what_one_cannot_cover(address: int, length: int) -> None:
    with pytest.raises(VmmError, match=f"{length} bytes"):
        watchpoint_registers(Point(Kind.WRITE, address, length))
