from __future__ import annotations

import pytest

from pyvmm.devices.exit import MAGIC, ExitRegister


@pytest.mark.parametrize(
    ("length", "value", "code"),
    [(4, 0, 0), (4, 3, 3), (1, 0xFF, 255), (2, 0x1234, 0x34), (4, 0xFFFF_FF07, 7), (8, 9, 9)],
)
def test_write_ends_the_vm_with_the_low_eight_bits(length: int, value: int, code: int) -> None:
    codes: list[int] = []
    register = ExitRegister(codes.append)

    register.mmio_write(0, length, value)

    assert codes == [code]


def test_exit_code_is_the_same_from_a_big_endian_guest() -> None:
    codes: list[int] = []

    ExitRegister(codes.append).mmio_write(0, 4, int.from_bytes((7).to_bytes(4, "big"), "little"))

    assert codes == [7]


def test_write_elsewhere_does_nothing() -> None:
    codes: list[int] = []
    register = ExitRegister(codes.append)

    register.mmio_write(4, 4, 1)
    register.mmio_write(1, 1, 1)

    assert codes == []


def test_read_identifies_the_register() -> None:
    register = ExitRegister(lambda code: None)

    assert register.mmio_read(0, 4).to_bytes(4, "little") == b"pyvm"
    assert register.mmio_read(0, 1) == MAGIC & 0xFF
