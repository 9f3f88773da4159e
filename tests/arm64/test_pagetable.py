"""The ranges that page tables map: compared with translate(), whose judge is the CPU."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64.control import Granule0, Granule1, Sctlr, Tcr
from pyvmm.arm64.pagetable import RANGES, TABLES, Range, Walk, access
from pyvmm.arm64.translation import PAGE_BITS, Regime, TranslationFault, translate
from pyvmm.errors import GuestError

MEMORY = 1 << 20
VALID, TABLE, AF = 1, 3, 1 << 10
PXN, UXN, EL0, READ_ONLY = 1 << 53, 1 << 54, 1 << 6, 1 << 7


class Ram:
    """A mebibyte of guest memory at address 0."""

    def __init__(self) -> None:
        self.bytes = bytearray(MEMORY)

    def read(self, address: int, length: int) -> bytes:
        if address + length > MEMORY:
            raise GuestError("outside memory")
        return bytes(self.bytes[address : address + length])

    def put(self, table: int, index: int, descriptor: int) -> None:
        struct.pack_into("<Q", self.bytes, table + 8 * index, descriptor)


def regime(
    *, page_bits: int = 12, input_bits: int = 48, upper: bool = False, **fields: int
) -> Regime:
    """Return registers whose tables begin at 64 KiB; the other half is off."""
    granules = {bits: number for number, bits in PAGE_BITS[upper].items()}
    half, other = ("1", "0") if upper else ("0", "1")
    chosen = {
        f"TG{half}": granules[page_bits], f"T{half}SZ": 64 - input_bits, f"EPD{other}": 1,
        f"TG{other}": Granule0.KIB_4 if upper else Granule1.KIB_4, "IPS": 5,
    }  # fmt: skip
    return Regime(sctlr=Sctlr.of(M=1), tcr=Tcr.of(**chosen | fields), ttbr0=1 << 16, ttbr1=1 << 16)


def linear() -> Ram:
    """Return tables with 16 pages, a hole, and a block of 2 MiB, all at address 4 GiB."""
    ram = Ram()
    ram.put(0x10000, 0, 0x20000 | TABLE)
    ram.put(0x20000, 0, 0x30000 | TABLE)
    ram.put(0x30000, 0, 0x40000 | TABLE)
    ram.put(0x30000, 1, 1 << 32 | AF | VALID)
    for n in range(16):
        ram.put(0x40000, n, (1 << 32) + (n << 12) | AF | TABLE)
    return ram


def test_walk_joins_contiguous_pages_of_one_size() -> None:
    walk = Walk(regime(), linear().read)

    assert list(walk.ranges()) == [
        Range(0, 0x10000, 1 << 32, 0x1000, 0),
        Range(0x20_0000, 0x40_0000, 1 << 32, 0x20_0000, 0),
    ]
    assert (walk.next, walk.unreadable) == (None, 0)


def test_walk_divides_pages_of_other_permissions() -> None:
    ram = linear()
    ram.put(0x40000, 7, (1 << 32) + 0x7000 | AF | TABLE | UXN)

    found = list(Walk(regime(), ram.read).ranges())

    assert [(r.start, r.end) for r in found[:3]] == [
        (0, 0x7000),
        (0x7000, 0x8000),
        (0x8000, 0x10000),
    ]
    assert found[1].attributes == UXN


def test_walk_of_the_upper_half_has_its_addresses() -> None:
    (first, _) = Walk(regime(upper=True), linear().read).ranges()

    assert first.start == 0xFFFF_0000_0000_0000


def test_walk_from_an_address_leaves_out_what_is_below_it() -> None:
    found = list(Walk(regime(), linear().read).ranges(0x5000))

    assert (found[0].start, found[0].address) == (0x5000, (1 << 32) + 0x5000)


def test_walk_counts_tables_outside_memory() -> None:
    ram = linear()
    ram.put(0x10000, 1, 1 << 40 | TABLE)
    walk = Walk(regime(), ram.read)

    assert len(list(walk.ranges())) == 2
    assert walk.unreadable == 1


def test_walk_maps_nothing_while_the_mmu_is_off() -> None:
    off = regime().replace(sctlr=Sctlr(0))

    assert not list(Walk(off, linear().read).ranges())


def test_walk_of_a_loop_ends_and_says_where_the_next_one_continues() -> None:
    ram = Ram()
    for n in range(512):
        ram.put(0x10000, n, 0x10000 | TABLE | AF)  # its own table at each level
    reads = 0

    def read(address: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        return ram.read(address, length)

    walk = Walk(regime(), read)
    first = list(walk.ranges())
    assert len(first) == RANGES
    assert reads <= TABLES
    assert walk.next == first[-1].end
    again = Walk(regime(), read)
    second = next(again.ranges(walk.next))
    assert second.start == walk.next


@pytest.mark.parametrize(
    ("attributes", "wxn", "el1", "el0"),
    [
        (0, 0, "rwx", "--x"),
        (PXN | UXN, 0, "rw-", "---"),
        (READ_ONLY | UXN, 0, "r-x", "---"),
        (EL0, 0, "rw-", "rwx"),  # EL1 does not run what EL0 can write
        (EL0 | READ_ONLY, 0, "r-x", "r-x"),
        (0, 1, "rw-", "--x"),
        (EL0, 1, "rw-", "rw-"),
        (EL0 | 1 << 66, 0, "rwx", "--x"),  # APTable[0]
        (EL0 | 1 << 67, 0, "r-x", "r-x"),  # APTable[1]
        (EL0 | READ_ONLY | 1 << 64 | 1 << 65, 0, "r--", "r--"),  # PXNTable, UXNTable
    ],
)
def test_access_follows_the_descriptor_and_the_tables_above(
    attributes: int, wxn: int, el1: str, el0: str
) -> None:
    control = regime().replace(sctlr=Sctlr.of(M=1, WXN=wxn))

    found = access(attributes, control, 0xFF)

    assert (found.el1, found.el0, found.memory) == (el1, el0, "normal")


def test_access_does_not_guess_indirect_permissions() -> None:
    assert access(1 << 2, regime(), 0x0400, indirect=True).el1 == "???"
    assert access(1 << 2, regime(), 0x0400, indirect=True).memory == "device-nGnRE"


def random_tables(rng: random.Random, page_bits: int) -> Ram:
    """Return tables that lead to each other, to blocks and to pages, with loops."""
    ram = Ram()
    places = range(1 << 16, MEMORY, 1 << page_bits)
    kinds = (0, AF | VALID, AF | TABLE, AF | TABLE, UXN | AF | TABLE)
    for table in places:
        for _ in range(12):
            index = rng.randrange(1 << page_bits - 3)
            ram.put(table, index, rng.choice(kinds) | rng.choice(places))
            ram.put(table, index ^ 1, rng.choice(kinds) | rng.choice(places))
    return ram


def addresses(found: list[Range], rng: random.Random, bits: int) -> Iterator[int]:
    yield from (rng.getrandbits(bits) for _ in range(50))
    for one in rng.sample(found, min(50, len(found))):
        yield from (one.start, one.end - 1, one.end, rng.randrange(one.start, one.end))


@given(
    st.sampled_from([(12, 48), (12, 39), (12, 25), (14, 47), (14, 36), (16, 48), (16, 29)]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_ranges_are_what_translate_translates(
    size: tuple[int, int], upper: bool, seed: int
) -> None:
    rng = random.Random(seed)
    page_bits, input_bits = size
    registers = regime(page_bits=page_bits, input_bits=input_bits, upper=upper)
    ram = random_tables(rng, page_bits)
    walk = Walk(registers, ram.read, tables=200)
    found = list(walk.ranges())
    base = (1 << 64) - (1 << input_bits) if upper else 0
    limit = base + (1 << input_bits) if walk.next is None else walk.next

    for va in addresses(found, rng, input_bits):
        va |= base
        if va >= limit:
            continue
        inside = [one for one in found if one.start <= va < one.end]
        try:
            translated = translate(va, registers, ram.read)
        except TranslationFault:
            assert not inside
        else:
            (one,) = inside
            assert translated.address == one.address + va - one.start
            assert 1 << translated.shift == one.page


def test_walk_of_many_empty_tables_stops_after_its_share_of_them() -> None:
    ram = Ram()
    for n in range(512):
        ram.put(0x10000, n, 0x20000 | TABLE)
        ram.put(0x20000, n, 0x30000 | TABLE)  # 2^18 times the same empty table
    walk = Walk(regime(), ram.read)

    assert not list(walk.ranges())
    assert walk.next is not None
