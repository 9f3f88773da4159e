from __future__ import annotations

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64.bits import Bits, bit, bits, names


class Class(IntEnum):
    SVC64 = 0x15
    DABT = 0x25


class Esr(Bits):
    EC = bits(31, 26, "exception class", Class)
    IL = bit(25, "the instruction was 32 bits long")
    ISS = bits(24, 0, "syndrome")


class Esr2(Esr):
    ISS2 = bits(36, 32, "more syndrome")


def test_fields_are_attributes_with_named_values() -> None:
    esr = Esr(0x5600_0007)

    assert esr.EC is Class.SVC64
    assert (esr.IL, esr.ISS) == (1, 7)


def test_reserved_value_stays_a_number() -> None:
    assert Esr(0x3F << 26).EC == 0x3F
    assert not isinstance(Esr(0x3F << 26).EC, Class)


def test_str_shows_the_number_and_every_field() -> None:
    assert str(Esr(0x5600_0007)) == f"{Esr(0x5600_0007)}" == "0x56000007 (EC=SVC64 IL=1 ISS=0x7)"
    assert repr(Esr(5)) == "Esr(0x5)"
    assert f"{Esr(5):#06x}" == "0x0005"


def test_names_count_from_zero_except_those_with_numbers() -> None:
    values = names("IMP", "FP16", NI=0xF)

    assert [(value.name, int(value)) for value in values] == [("IMP", 0), ("FP16", 1), ("NI", 15)]


@pytest.mark.parametrize(("value", "word"), [(0x15 << 26, "SVC64"), (0x3F << 26, "0x3f")])
def test_word_of_a_field_is_its_name_or_its_number(value: int, word: str) -> None:
    assert Esr.EC.word(value) == word


def test_of_builds_an_int_from_fields() -> None:
    assert Esr.of(EC=Class.SVC64, IL=1, ISS=7) == 0x5600_0007


def test_replace_changes_only_the_named_field() -> None:
    assert Esr(0x5600_0007).replace(ISS=0) == 0x5600_0000


@pytest.mark.parametrize("value", [0x40, -1])
def test_of_names_the_field_that_a_value_does_not_fit(value: int) -> None:
    with pytest.raises(ValueError, match=r"^EC=-?0x\w+ does not fit bits 31:26$"):
        Esr.of(EC=value)


def test_of_refuses_an_unknown_field() -> None:
    with pytest.raises(TypeError, match="Esr has no field XX"):
        Esr.of(XX=1)


def test_subclass_inherits_its_bases_fields() -> None:
    assert [field.name for field in Esr2.fields()] == ["EC", "IL", "ISS", "ISS2"]
    assert Esr2(3 << 32).ISS2 == 3


def test_field_of_a_class_has_a_mask_and_a_meaning() -> None:
    assert Esr.EC.mask == 0xFC00_0000
    assert Esr.IL.meaning == "the instruction was 32 bits long"


def test_bits_refuses_a_backward_field() -> None:
    with pytest.raises(ValueError, match="bits 3 to 5 are not a field"):
        bits(3, 5, "")


@given(st.integers(0, 2**32 - 1))
def test_of_rebuilds_a_register_from_all_its_fields(value: int) -> None:
    esr = Esr(value)

    assert Esr.of(EC=esr.EC, IL=esr.IL, ISS=esr.ISS) == value
