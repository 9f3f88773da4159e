"""Walks of a guest's translation tables; tests/kvm/test_translation.py has the CPU as judge."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64.control import Granule0, Granule1, Sctlr, Tcr
from pyvmm.arm64.fault import FaultStatus
from pyvmm.arm64.translation import Regime, TranslationFault, translate
from pyvmm.errors import GuestError

MMU_ON = Sctlr.of(M=1)
TABLE, BLOCK, PAGE = 0x403, 0x401, 0x403


class Tables:
    """Descriptors by address; others are zero, and counted."""

    def __init__(self, descriptors: dict[int, int], *, end: int = 1 << 32) -> None:
        self.descriptors = descriptors
        self.end = end
        self.reads = 0

    def read(self, address: int, length: int) -> bytes:
        self.reads += 1
        if address >= self.end:
            raise GuestError("not in RAM")
        return self.descriptors.get(address, 0).to_bytes(length, "little")


def regime(mmu: Sctlr = MMU_ON, /, **fields: int) -> Regime:
    """Return registers with 48-bit addresses in both halves, 4 KiB pages and other fields."""
    usual = {"T0SZ": 16, "T1SZ": 16, "TG1": Granule1.KIB_4, "IPS": 5}
    return Regime(sctlr=mmu, tcr=Tcr.of(**usual | fields), ttbr0=0x1000, ttbr1=0x1000)


def linear(*, page: int = PAGE | 0x9000_0000) -> dict[int, int]:
    """Return tables from 0x1000 on whose last has ``page``, for address 0x0000_8040_2010_1000."""
    return {
        0x1000 + 8 * 257: TABLE | 0x2000,
        0x2000 + 8 * 1: TABLE | 0x3000,
        0x3000 + 8 * 1: TABLE | 0x4000,
        0x4000 + 8 * 1: page,
    }


VA = 257 << 39 | 1 << 30 | 1 << 21 | 1 << 12 | 0x123


def test_walk_of_four_levels_finds_a_page() -> None:
    tables = Tables(linear())

    assert translate(VA, regime(), tables.read).address == 0x9000_0123
    assert tables.reads == 4


@pytest.mark.parametrize(
    ("level", "descriptor", "address"),
    [(1, BLOCK | 0x40_0000_0000, 0x40_0020_1123), (2, BLOCK | 0x4000_0000, 0x4000_1123)],
)
def test_walk_ends_at_a_block(level: int, descriptor: int, address: int) -> None:
    tables = Tables(linear() | {0x1000 * (level + 1) + 8: descriptor})

    assert translate(VA, regime(), tables.read).address == address


@pytest.mark.parametrize(
    ("descriptors", "status"),
    [
        ({}, FaultStatus.FAULT_L0),
        ({0x1000 + 8 * 257: BLOCK}, FaultStatus.FAULT_L0),  # no block at level 0
        ({**linear(), 0x3008: 0}, FaultStatus.FAULT_L2),
        (linear(page=BLOCK), FaultStatus.FAULT_L3),  # reserved there
        (linear(page=PAGE & ~0x400), FaultStatus.ACCESS_L3),
        ({**linear(), 0x2008: TABLE | 1 << 40}, FaultStatus.SEA_TTW_L2),  # no memory there
    ],
)
def test_fault_names_the_level(descriptors: dict[int, int], status: FaultStatus) -> None:
    with pytest.raises(TranslationFault) as caught:
        translate(VA, regime(), Tables(descriptors).read)

    assert caught.value.status == status
    assert f"{VA:#x}" in caught.value.message


@pytest.mark.parametrize(
    ("va", "fields"),
    [
        (VA, {"EPD0": 1}),
        (VA | 1 << 48, {}),
        (VA | 0xAB << 56, {}),  # a tag
        (VA, {"T0SZ": 15}),
        (VA, {"T0SZ": 49}),
        (VA, {"T0SZ": 48, "TG0": Granule0.KIB_64}),
    ],
)
def test_address_outside_the_tables_is_a_fault_of_level_0(va: int, fields: dict[str, int]) -> None:
    tables = Tables(linear())

    with pytest.raises(TranslationFault) as caught:
        translate(va, regime(**fields), tables.read)

    assert caught.value.status == FaultStatus.FAULT_L0
    assert tables.reads == 0


@pytest.mark.parametrize(
    ("ttbr", "page", "status"),
    [
        (0x1000, 0x1_9000_0000, FaultStatus.ADDRSZ_L3),
        (0x1_0000_1000, 0x9000_0000, FaultStatus.ADDRSZ_L0),
    ],
)
def test_address_beyond_the_physical_size_is_a_fault(
    ttbr: int, page: int, status: FaultStatus
) -> None:
    tables = Tables(linear(page=PAGE | page))

    with pytest.raises(TranslationFault) as caught:
        translate(VA, regime(IPS=0).replace(ttbr0=ttbr), tables.read)

    assert caught.value.status == status


def test_clear_access_flag_is_no_fault_when_hardware_sets_it() -> None:
    tables = Tables(linear(page=PAGE & ~0x400 | 0x9000_0000))

    assert translate(VA, regime(HA=1), tables.read).address == 0x9000_0123


def test_walk_ignores_the_tag_when_tbi_is_set() -> None:
    assert translate(VA | 0xAB << 56, regime(TBI0=1), Tables(linear()).read).address == 0x9000_0123


def test_reserved_page_size_is_refused() -> None:
    with pytest.raises(GuestError, match="TG0"):
        translate(VA, regime(TG0=3), Tables(linear()).read)


def test_attributes_differ_with_permissions_of_page_and_table() -> None:
    def attributes(**changed: int) -> int:
        descriptors = linear()
        descriptors[0x4008] |= changed.get("page", 0)
        descriptors[0x2008] |= changed.get("table", 0)
        return translate(VA, regime(), Tables(descriptors).read).attributes

    usual = attributes()

    assert attributes(page=0x10_0000) == usual  # another address
    for bit in (6, 7, 53, 54):  # AP, PXN, UXN
        assert attributes(page=1 << bit) != usual
    for bit in (59, 60, 61, 62):  # PXNTable, XNTable, APTable
        assert attributes(table=1 << bit) != usual


@pytest.mark.parametrize(
    ("va", "fields", "address"),
    [
        (0x1234, {}, 0x1234),
        (0xAB00_0000_0000_1234, {"TBI0": 1}, 0x1234),
        (0xAB00_0000_0000_1234, {}, None),
        (0xFFFF_0000_0000_0000, {"TBI0": 1}, None),
    ],
)
def test_address_is_physical_while_the_mmu_is_off(
    va: int, fields: dict[str, int], address: int | None
) -> None:
    tables = Tables({})
    off = regime(Sctlr(0), **fields)

    if address is None:
        with pytest.raises(TranslationFault):
            translate(va, off, tables.read)
    else:
        assert translate(va, off, tables.read).address == address
    assert tables.reads == 0


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers()
)
def test_walk_ends_within_five_steps_for_any_registers_and_tables(
    va: int, tcr: int, ttbr: int, seed: int
) -> None:
    rng = random.Random(seed)
    reads = 0

    def read(address: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        if rng.random() < 0.02:
            raise GuestError("not in RAM")
        return (rng.getrandbits(64) | rng.choice([0, 3, 3, 3])).to_bytes(length, "little")

    try:
        found = translate(va, Regime(MMU_ON, Tcr(tcr), ttbr, ttbr), read)
    except GuestError:
        pass
    else:
        assert 0 <= found.address < 1 << 52
        assert found.address & 0xFFF == va & 0xFFF
    assert reads <= 5
