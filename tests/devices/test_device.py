from __future__ import annotations

import pytest

from pyvmm.devices.device import Device, Reg


class Sample(Device):
    """A device with a register of each kind."""

    node_name = "sample"
    compatible = ("test,sample",)

    KEPT = Reg(0x00, "keeps what is written", reset=0x1122_3344)
    FIXED = Reg(0x04, "cannot be written", ro=True, reset=7)
    COMMAND = Reg(0x08, "cannot be read", wo=True)
    STATUS = Reg(0x08, "shares the command's offset", ro=True, reset=9)
    COUNT = Reg(0x0C, "reads how often it was written")
    OTHER = Reg(0x00, "in the place of KEPT", bank=1)

    @COUNT.read
    def _(self) -> int:
        return self.COUNT

    @COUNT.write
    def _(self, value: int) -> None:
        self.COUNT += 1


def test_register_starts_at_its_reset_value() -> None:
    assert Sample().mmio_read(Sample.KEPT.offset, 4) == 0x1122_3344


def test_register_without_handlers_holds_the_written_value() -> None:
    sample = Sample()

    sample.mmio_write(0x00, 4, 0xDEAD_BEEF)

    assert sample.mmio_read(0x00, 4) == 0xDEAD_BEEF
    assert sample.KEPT == 0xDEAD_BEEF


def test_devices_of_a_class_share_no_values() -> None:
    one, other = Sample(), Sample()

    one.mmio_write(0x00, 4, 1)

    assert other.KEPT == 0x1122_3344


def test_accesses_call_the_handlers() -> None:
    sample = Sample()

    sample.mmio_write(0x0C, 4, 0)
    sample.mmio_write(0x0C, 4, 0)

    assert sample.mmio_read(0x0C, 4) == 2


def test_write_to_a_read_only_register_is_ignored() -> None:
    sample = Sample()

    sample.mmio_write(0x04, 4, 1)

    assert sample.mmio_read(0x04, 4) == 7


def test_registers_for_reading_and_writing_may_share_an_offset() -> None:
    sample = Sample()

    sample.mmio_write(0x08, 4, 5)

    assert sample.mmio_read(0x08, 4) == 9
    assert sample.COMMAND == 5


def test_offset_without_a_register_reads_zero_and_ignores_writes() -> None:
    sample = Sample()
    before = sample.values

    sample.mmio_write(0x100, 4, 1)

    assert sample.mmio_read(0x100, 4) == 0
    assert sample.values == before


@pytest.mark.parametrize(
    ("offset", "length", "value"),
    [
        (0, 1, 0x44),
        (1, 1, 0x33),
        (2, 2, 0x1122),
        (3, 1, 0x11),
        (3, 4, 0x11),
        (0, 8, 0x1122_3344),
    ],
)
def test_read_returns_the_bytes_of_one_register(offset: int, length: int, value: int) -> None:
    assert Sample().mmio_read(offset, length) == value


@pytest.mark.parametrize(
    ("offset", "length", "kept"),
    [(0, 1, 0xFE), (0, 2, 0xCAFE), (0, 8, 0xBEEF_CAFE), (1, 1, 0x1122_3344), (2, 2, 0x1122_3344)],
)
def test_write_of_another_width_follows_the_rule(offset: int, length: int, kept: int) -> None:
    sample = Sample()

    sample.mmio_write(offset, length, 0x0123_4567_BEEF_CAFE)

    assert sample.values["KEPT"] == kept


def test_bank_hides_only_the_registers_it_replaces() -> None:
    sample = Sample()

    sample.select_bank(1)
    sample.mmio_write(0x00, 4, 5)
    in_bank = (sample.mmio_read(0x00, 4), sample.mmio_read(0x04, 4))
    sample.select_bank(0)

    assert in_bank == (5, 7)
    assert sample.mmio_read(0x00, 4) == 0x1122_3344


def test_values_can_be_saved_and_restored() -> None:
    sample, copy = Sample(), Sample()
    sample.mmio_write(0x00, 4, 5)

    copy.values = sample.values

    assert copy.values == sample.values
    assert copy.mmio_read(0x00, 4) == 5


def test_declaration_has_the_meaning_of_each_register() -> None:
    assert [reg.name for reg in Sample.registers][:2] == ["KEPT", "FIXED"]
    assert "keeps what is written" in repr(Sample.KEPT)


def test_two_registers_with_one_offset_are_refused() -> None:
    with pytest.raises(TypeError, match="share an offset"):

        class Clash(Device):
            A = Reg(0, "one")
            B = Reg(0, "another")
