"""Sizes read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.base.units import parse_size, show_size
from pyvmm.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256", 256 << 20),
        ("4096B", 4096),
        ("64k", 64 << 10),
        ("512M", 512 << 20),
        ("4G", 4 << 30),
        ("1T", 1 << 40),
        ("2P", 2 << 50),
        ("0", 0),
        (" 8 ", 8 << 20),
    ],
)
def test_parse_size_reads_mib_or_the_suffix(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1.5G", "256MB", "256MiB", "0x10", "lots", "1 G", "256M@2G"]
)
def test_parse_size_refuses_other_text(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (4095, "4095 bytes"),
        (1 << 20, "1 MiB"),
        (3 << 29, "1536 MiB"),
        (1 << 40, "1 TiB"),
    ],
)
def test_show_size_takes_the_largest_whole_unit(size: int, text: str) -> None:
    assert show_size(size) == text


@given(st.integers(min_value=1, max_value=(1 << 60) - 1))
def test_show_size_loses_nothing(size: int) -> None:
    number, unit = show_size(size).split()

    assert parse_size(number + unit[0].upper()) == size


@pytest.mark.parametrize("text", ["9" * 30, "9" * 20 + "G"])
def test_parse_size_refuses_a_size_beyond_any_memory(text: str) -> None:
    with pytest.raises(UsageError, match="larger than any memory"):
        parse_size(text)
