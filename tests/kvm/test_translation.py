"""Walks of translation tables, compared with the CPU's own: AT S1E1R and PAR_EL1."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from pyvmm.arm64.control import Granule0, Granule1, Sctlr, Tcr
from pyvmm.arm64.idregs import IdAa64Mmfr0
from pyvmm.arm64.sysregs import ENCODINGS
from pyvmm.arm64.translation import OUTPUT_BITS, PAGE_BITS, Regime, TranslationFault, translate
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import ExitReason
from tests.kvm.guest import MMIO, RAM_BASE, Guest, guest

pytestmark = pytest.mark.kvm

ADDRESSES = 48  # asked for in one run of the guest
RUNS = 8  # of each kind of tables
ASKED, ANSWERS = RAM_BASE + 0x1000, RAM_BASE + 0x2000
OWN_TABLE = RAM_BASE + 0x3000  # of the guest's code: blocks of 1 GiB
TABLES = RAM_BASE + 0x10_0000  # aligned for each page size
OWN_BITS = 39  # of the addresses of the guest's code
UPPER = -1 << OWN_BITS & 2**64 - 1
OWN_BLOCK = 0x401  # valid, with the access flag
MAIR = 0x00FF  # type 0 is Normal, for RAM; type 1 is Device
NT = 1 << 16  # of a block: FEAT_BBM
# PAR_EL1 with and without F.  Source: Arm ARM DDI 0487, D23.2 "PAR_EL1"
PAR_PA, PAR_FAULT = 0x000F_FFFF_FFFF_F000, 0x7F


@dataclass
class Kind:
    """Tables to compare: the page size, bits of addresses, and which half is walked."""

    page_bits: int
    input_bits: int
    ips: int = 5
    wide: bool = False  # TCR_EL1.DS
    upper: bool = False
    tagged: bool = False  # TCR_EL1.TBI
    big_endian: bool = False

    @property
    def first_level(self) -> int:
        """The level of the first table."""
        return 4 - math.ceil((self.input_bits - self.page_bits) / (self.page_bits - 3))

    @property
    def block_levels(self) -> set[int]:
        """The levels with blocks. QEMU 7.2 accepts blocks at others too."""
        if self.page_bits == 12:
            return {0, 1, 2} if self.wide else {1, 2}
        return {1, 2} if self.wide or (self.page_bits == 16 and self.ips == 6) else {2}

    def table(self, level: int) -> int:
        """Return the address of the one table of a level."""
        return TABLES + (level - self.first_level << self.page_bits)

    def __str__(self) -> str:
        flags = [name for name in ("wide", "upper", "tagged", "big_endian") if getattr(self, name)]
        return "-".join([f"{1 << self.page_bits - 10}K", f"{self.input_bits}bits", *flags])


KINDS = [
    Kind(12, 48),
    Kind(12, 39, upper=True),
    Kind(12, 30, tagged=True),
    Kind(12, 25, ips=0),
    Kind(12, 16, upper=True),
    Kind(12, 52, ips=6, wide=True),
    Kind(12, 48, ips=4, wide=True, upper=True),
    Kind(12, 42, big_endian=True),
    Kind(14, 48, upper=True, tagged=True),
    Kind(14, 47),
    Kind(14, 36, ips=1, upper=True),
    Kind(14, 52, ips=6, wide=True),
    Kind(14, 20, big_endian=True),
    Kind(16, 48),
    Kind(16, 42, ips=2, upper=True, tagged=True),
    Kind(16, 52, ips=6),
    Kind(16, 29, upper=True),
    Kind(16, 17, big_endian=True),
]


def registers(kind: Kind) -> dict[str, int]:
    """Return the system registers: the other half of the addresses maps the guest's code."""
    (lower, upper) = (PAGE_BITS[half] for half in (0, 1))
    granule = {bits: number for number, bits in (upper if kind.upper else lower).items()}
    walked, own = ("1", "0") if kind.upper else ("0", "1")
    fields = {
        f"TG{walked}": granule[kind.page_bits],
        f"T{walked}SZ": 64 - kind.input_bits,
        f"TBI{walked}": int(kind.tagged),
        f"TG{own}": Granule0.KIB_4 if kind.upper else Granule1.KIB_4,
        f"T{own}SZ": 64 - OWN_BITS,
        "IPS": kind.ips,
        "DS": int(kind.wide),
    }
    return {
        "SCTLR_EL1": Sctlr(0x30D0_0980).replace(M=1, EE=int(kind.big_endian)),  # with RES1 bits
        "TCR_EL1": Tcr.of(**fields),
        f"TTBR{walked}_EL1": TABLES | 1 << 48,  # and an ASID
        f"TTBR{own}_EL1": OWN_TABLE,
        "MAIR_EL1": MAIR,
    }


def encode(kind: Kind, address: int) -> int:
    """Return the bits of a descriptor for an address of up to 52 bits."""
    low = address & (1 << 48) - (1 << kind.page_bits) & ~NT
    if kind.wide:
        return low | (address >> 48 & 0x3) << 48 | (address >> 50 & 0x3) << 8
    return low | (address >> 48 & 0xF) << 12 if kind.ips == 6 else low


def descriptor(kind: Kind, level: int, rng: random.Random) -> int:
    """Return a descriptor of a level's table: anything, but no table outside RAM."""
    which = rng.random()
    if which < 0.1:
        return rng.getrandbits(64) & ~1
    accessed = 0x400 if rng.random() < 0.9 else 0
    attributes = rng.getrandbits(5) << 59 | rng.getrandbits(2) << 6 | accessed
    bits = OUTPUT_BITS[kind.ips]
    address = rng.getrandbits(rng.choice([bits, bits, 52 if kind.wide else 48]))
    if level == 3:
        return attributes | encode(kind, address) | (1 if which < 0.2 else 3)
    if which < 0.4 and level in kind.block_levels:
        return attributes | encode(kind, address) | 1
    address = kind.table(level + 1)
    if bits < 48 and rng.random() < 0.1:
        address |= 1 << rng.randrange(bits, 48)
    return attributes | address | 3


def ask(kind: Kind, rng: random.Random) -> int:
    """Return a virtual address, mostly of the walked half."""
    address = rng.getrandbits(kind.input_bits) | (-1 << kind.input_bits) * kind.upper
    if rng.random() < 0.1:
        address ^= 1 << rng.randrange(kind.input_bits, 64)
    if kind.tagged:
        address ^= rng.getrandbits(8) << 56
    return address & 2**64 - 1


def expected(va: int, regime: Regime, made: Guest) -> int:
    """Return what PAR_EL1 has after a walk of pyvmm's: F, and PA or FST."""
    try:
        return translate(va, regime, made.memory.read).address & PAR_PA
    except TranslationFault as fault:
        return fault.status << 1 | 1


@pytest.fixture(scope="module")
def made() -> Iterator[Guest]:
    with guest("translate") as made:
        yield made


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_walk_agrees_with_the_cpus_own_translation(kind: Kind, made: Guest) -> None:
    mmfr0 = IdAa64Mmfr0(made.vcpu.get_one_reg(regs.lookup("ID_AA64MMFR0_EL1", ENCODINGS)))
    if kind.wide and (mmfr0.TGran4 if kind.page_bits == 12 else mmfr0.TGran16 - 1) != 1:
        pytest.skip("no LPA2: PYVMM_HOST_CPU=max,lpa2=on makes a host with it")
    rng = random.Random(str(kind))
    order: Literal["big", "little"] = "big" if kind.big_endian else "little"
    held = registers(kind)
    regime = Regime.of(held)
    here = 0 if kind.upper else UPPER
    results: set[int] = set()

    for _ in range(RUNS):
        for level in range(kind.first_level, 4):
            some = [descriptor(kind, level, rng).to_bytes(8, order) for _ in range(100)]
            table = rng.choices(some, k=1 << kind.page_bits - 3)
            made.memory.write(kind.table(level), b"".join(table))
        for gib, memory_type in ((0, 1), (RAM_BASE >> 30, 0)):
            block = OWN_BLOCK | gib << 30 | memory_type << 2
            made.memory.write(OWN_TABLE + 8 * gib, block.to_bytes(8, order))
        asked = [ask(kind, rng) for _ in range(ADDRESSES)]
        made.memory.write(ASKED, b"".join(va.to_bytes(8, order) for va in asked))
        made.vcpu.set_one_reg(regs.PC, here + RAM_BASE)
        for name, value in held.items():
            made.vcpu.set_one_reg(regs.lookup(name, ENCODINGS), value)
        made.set(
            x0=here + ASKED, x1=here + ANSWERS, x2=here + ASKED + 8 * ADDRESSES, x20=here + MMIO
        )

        assert made.vcpu.run().reason == ExitReason.MMIO

        for number, va in enumerate(asked):
            par = int.from_bytes(made.memory.read(ANSWERS + 8 * number, 8), order)
            found = par & (PAR_FAULT if par & 1 else PAR_PA)
            mine = expected(va, regime, made)
            assert mine == found, f"{va:#x}: PAR_EL1={par:#x}, not {mine:#x}"
            results.add(found if par & 1 else 0)
    assert 0 in results
    assert len(results) > 2
