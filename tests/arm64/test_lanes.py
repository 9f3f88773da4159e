"""Lanes of vectors and predicates, checked against the bytes of the values."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64.lanes import LANES, Predicate, Vector

CODES = {"b": "B", "h": "H", "s": "I", "d": "Q"}  # struct's codes, unsigned
FLOATS = {"h": "e", "s": "f", "d": "d"}

vls = st.integers(1, 16).map(lambda quadwords: quadwords * 128)
vectors = vls.flatmap(lambda vl: st.integers(0, (1 << vl) - 1).map(lambda value: Vector(value, vl)))
predicates = vls.flatmap(
    lambda vl: st.integers(0, (1 << vl // 8) - 1).map(lambda value: Predicate(value, vl))
)
suffixes = st.sampled_from(sorted(LANES))


def unpacked(data: bytes, code: str) -> tuple[object, ...]:
    """Return the lanes as struct unpacks them."""
    return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)


@given(vector=vectors)
@pytest.mark.parametrize("suffix", CODES)
def test_lanes_agree_with_the_vectors_bytes(suffix: str, vector: Vector) -> None:
    lanes = getattr(vector, suffix)

    assert lanes == unpacked(bytes(vector), CODES[suffix])
    assert lanes.signed == unpacked(bytes(vector), CODES[suffix].lower())


@given(vector=vectors)
@pytest.mark.parametrize("suffix", FLOATS)
def test_float_lanes_are_ieee_754(suffix: str, vector: Vector) -> None:
    lanes = getattr(vector, suffix).float

    expected = unpacked(bytes(vector), FLOATS[suffix])
    assert list(map(repr, lanes)) == list(map(repr, expected))  # a NaN is not equal to itself


@given(vector=vectors)
def test_quadwords_are_pairs_of_doublewords(vector: Vector) -> None:
    pairs = zip(vector.d[::2], vector.d[1::2], strict=True)

    assert list(vector.q) == [low | high << 64 for low, high in pairs]


@given(vector=vectors, suffix=suffixes)
def test_of_rebuilds_a_vector_from_its_lanes(vector: Vector, suffix: str) -> None:
    lanes = getattr(vector, suffix)

    assert Vector.of(vector.vl, **{suffix: lanes}) == vector
    assert Vector.of(vector.vl, **{suffix: lanes.signed}) == vector


@given(vector=vectors, suffix=suffixes, data=st.data())
def test_replace_changes_only_one_lane(vector: Vector, suffix: str, data: st.DataObject) -> None:
    lanes = list(getattr(vector, suffix))
    index = data.draw(st.integers(0, len(lanes) - 1))
    lanes[index] = data.draw(st.integers(0, (1 << LANES[suffix]) - 1))

    changed = vector.replace(**{suffix: {index: lanes[index]}})

    assert list(getattr(changed, suffix)) == lanes


@given(predicate=predicates, suffix=suffixes)
def test_predicate_lane_is_active_if_its_lowest_bit_is_set(
    predicate: Predicate, suffix: str
) -> None:
    lanes = getattr(predicate, suffix)

    step = LANES[suffix] // 8
    assert len(lanes) == predicate.vl // LANES[suffix]
    assert lanes == predicate.b[::step]
    assert [predicate.value >> at & 1 == 1 for at in range(predicate.vl // 8)] == [*predicate.b]


@given(predicate=predicates, suffix=suffixes)
def test_of_makes_a_predicate_with_the_same_active_lanes(predicate: Predicate, suffix: str) -> None:
    made = Predicate.of(predicate.vl, **{suffix: getattr(predicate, suffix)})

    assert getattr(made, suffix) == getattr(predicate, suffix)
    assert made.value & ~predicate.value == 0


@given(value=st.floats(allow_nan=False))
def test_double_survives_a_64_bit_lane(value: float) -> None:
    assert Vector.of(128, d=[1, value]).d.float[1] == value


def test_of_rounds_a_float_to_the_lanes_precision() -> None:
    vector = Vector.of(128, s=[0.1, math.inf, -0.0])

    assert vector.s == (0x3DCC_CCCD, 0x7F80_0000, 0x8000_0000, 0)


def test_of_clears_omitted_lanes() -> None:
    assert Vector.of(256, h=[1, -1]).value == 0xFFFF_0001
    assert Predicate.of(256, d=[False, True]).value == 1 << 8


def test_at_truncates_and_extends() -> None:
    vector, predicate = Vector.of(256, d=[1, 2, 3, 4]), Predicate.of(256, b=[True] * 32)

    assert vector.at(128) == Vector.of(128, d=[1, 2])
    assert vector.at(512).d == (1, 2, 3, 4, 0, 0, 0, 0)
    assert predicate.at(128) == Predicate(0xFFFF, 128)


def test_str_has_leading_zeros() -> None:
    assert str(Vector(0x5A, 128)) == f"0x{'0' * 30}5a"
    assert str(Predicate(1, 128)) == "0x0001"
    assert repr(Predicate(1, 128)) == "Predicate(0x0001, vl=128)"


@pytest.mark.parametrize("vl", [0, -128, 64, 100, 129])
def test_vector_refuses_an_invalid_length(vl: int) -> None:
    with pytest.raises(ValueError, match=f"{vl} is not a vector length"):
        Vector(0, vl)


@pytest.mark.parametrize(
    ("kind", "value"), [(Vector, 1 << 128), (Vector, -1), (Predicate, 1 << 16)]
)
def test_vector_refuses_a_value_that_does_not_fit(kind: type[Vector], value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        kind(value, 128)


@pytest.mark.parametrize(
    ("lanes", "words"),
    [
        ({"b": {0: 256}}, r"b\[0\]: 256 does not fit 8 bits"),
        ({"b": {0: -129}}, r"b\[0\]: -129 does not fit 8 bits"),
        ({"s": {4: 1}}, r"no lane s\[4\] in 128 bits"),
        ({"s": {-1: 1}}, r"no lane s\[-1\]"),
        ({"h": {1: 1e9}}, r"h\[1\]: 1000000000.0 does not fit a float of 16 bits"),
        ({"b": {0: 1.0}}, r"b\[0\]: there are no floating-point numbers of 8 bits"),
    ],
)
def test_replace_names_the_lane_that_it_refuses(
    lanes: dict[str, dict[int, float]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Vector(0, 128).replace(**lanes)


def test_predicate_refuses_numbers_other_than_0_and_1() -> None:
    with pytest.raises(ValueError, match=r"d\[1\]: 2 is neither True nor False"):
        Predicate.of(128, d=[1, 2])


def test_of_refuses_an_unknown_lane_size() -> None:
    with pytest.raises(TypeError, match="lanes are b, h, s, d, q, not w"):
        Vector.of(128, w=[1])


@pytest.mark.parametrize("suffix", ["b", "q"])
def test_float_refuses_lane_sizes_without_floats(suffix: str) -> None:
    with pytest.raises(TypeError, match="hold no floating-point numbers"):
        _ = getattr(Vector(0, 128), suffix).float
