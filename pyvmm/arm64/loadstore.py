"""Loads and stores: their encodings, decoded for emulation and shown as an assembler writes them.

    decode(0xB8004401)    # LoadStore: str w1, [x0], #4
    describe(0xB8210002)  # "ldadd w1, w2, [x0]": also what `decode` does not accept

Source: Arm ARM DDI 0487, C4.1 "Loads and Stores"; GROUPS has the names of its encoding groups.
"""

from __future__ import annotations

from enum import IntEnum

from pyvmm.arm64.bits import Bits, bit, bits
from pyvmm.base.records import Record

SP_OR_ZR = 31  # as a base register: SP; as a data or offset register: zero
REGISTER_BYTES = {"w": 4, "x": 8, "b": 1, "h": 2, "s": 4, "d": 8, "q": 16}


class Index(IntEnum):
    """The computation of an address."""

    OFFSET = 0  # base plus immediate
    POST = 1  # the base; afterwards the immediate is added to the base register
    PRE = 2  # base plus immediate, which is then written to the base register
    REGISTER = 3  # base plus a register, extended and shifted


class Word(Bits):
    """An instruction, with the fields of loads and stores; groups use some of them."""

    size = bits(31, 30, "log2 of the bytes, or opc of a pair")
    V = bit(26, "SIMD&FP registers")
    opc = bits(23, 22, "direction, and kind of extension")
    L = bit(22, "a load (pairs, exclusives)")
    imm7 = bits(21, 15, "offset in units of the register's size")
    imm12 = bits(21, 10, "offset in units of the access's size")
    imm9 = bits(20, 12, "offset in bytes")
    Rs = bits(20, 16, "status, compared or added register")
    Rm = bits(20, 16, "offset register")
    option = bits(15, 13, "kind of extension")
    S = bit(12, "the offset register is shifted")
    Rt2 = bits(14, 10, "second register")
    Rn = bits(9, 5, "base register")
    Rt = bits(4, 0, "register")


class Group(Record):
    """An encoding group: a word belongs to it if its bits under ``mask`` are ``value``."""

    name: str
    mask: int
    value: int
    index: Index
    letter: str = ""  # a letter in the mnemonic: u in ldur
    is_pair: bool = False
    is_scaled: bool = False  # a 12-bit unsigned offset


GROUPS: tuple[Group, ...] = (
    # name, mask, value, index
    Group("no-allocate pair (offset)", 0x3B80_0000, 0x2800_0000, Index.OFFSET, "n", True),
    Group("register pair (post-indexed)", 0x3B80_0000, 0x2880_0000, Index.POST, "", True),
    Group("register pair (offset)", 0x3B80_0000, 0x2900_0000, Index.OFFSET, "", True),
    Group("register pair (pre-indexed)", 0x3B80_0000, 0x2980_0000, Index.PRE, "", True),
    Group("register (unscaled immediate)", 0x3B20_0C00, 0x3800_0000, Index.OFFSET, "u"),
    Group("register (immediate post-indexed)", 0x3B20_0C00, 0x3800_0400, Index.POST),
    Group("register (unprivileged)", 0x3F20_0C00, 0x3800_0800, Index.OFFSET, "t"),
    Group("register (immediate pre-indexed)", 0x3B20_0C00, 0x3800_0C00, Index.PRE),
    Group("register (register offset)", 0x3B20_0C00, 0x3820_0800, Index.REGISTER),
    Group("register (unsigned immediate)", 0x3B00_0000, 0x3900_0000, Index.OFFSET, is_scaled=True),
)

# (V, size, opc): mnemonic with * for the group's letter, register, bytes.
# What is not here is unallocated, or a prefetch, which never faults.
SINGLES: dict[tuple[int, int, int], tuple[str, str, int]] = {
    (0, 0, 0): ("st*rb", "w", 1),
    (0, 0, 1): ("ld*rb", "w", 1),
    (0, 0, 2): ("ld*rsb", "x", 1),
    (0, 0, 3): ("ld*rsb", "w", 1),
    (0, 1, 0): ("st*rh", "w", 2),
    (0, 1, 1): ("ld*rh", "w", 2),
    (0, 1, 2): ("ld*rsh", "x", 2),
    (0, 1, 3): ("ld*rsh", "w", 2),
    (0, 2, 0): ("st*r", "w", 4),
    (0, 2, 1): ("ld*r", "w", 4),
    (0, 2, 2): ("ld*rsw", "x", 4),
    (0, 3, 0): ("st*r", "x", 8),
    (0, 3, 1): ("ld*r", "x", 8),
    (1, 0, 0): ("st*r", "b", 1),
    (1, 0, 1): ("ld*r", "b", 1),
    (1, 0, 2): ("st*r", "q", 16),
    (1, 0, 3): ("ld*r", "q", 16),
    (1, 1, 0): ("st*r", "h", 2),
    (1, 1, 1): ("ld*r", "h", 2),
    (1, 2, 0): ("st*r", "s", 4),
    (1, 2, 1): ("ld*r", "s", 4),
    (1, 3, 0): ("st*r", "d", 8),
    (1, 3, 1): ("ld*r", "d", 8),
}
# (V, opc, L): the same for pairs
PAIRS: dict[tuple[int, int, int], tuple[str, str, int]] = {
    (0, 0, 0): ("st*p", "w", 4),
    (0, 0, 1): ("ld*p", "w", 4),
    (0, 1, 1): ("ldpsw", "x", 4),
    (0, 2, 0): ("st*p", "x", 8),
    (0, 2, 1): ("ld*p", "x", 8),
    (1, 0, 0): ("st*p", "s", 4),
    (1, 0, 1): ("ld*p", "s", 4),
    (1, 1, 0): ("st*p", "d", 8),
    (1, 1, 1): ("ld*p", "d", 8),
    (1, 2, 0): ("st*p", "q", 16),
    (1, 2, 1): ("ld*p", "q", 16),
}

# Extensions of an offset register, by option.  Source: DDI 0487, DecodeRegExtend()
EXTENSIONS = {2: "uxtw", 3: "lsl", 6: "sxtw", 7: "sxtx"}


class LoadStore(Record):
    """One load or store. It accesses ``size`` bytes for each register, from one address on."""

    mnemonic: str
    letter: str  # of the registers: w, x, b, h, s, d, q
    registers: tuple[int, ...]
    size: int  # bytes of each access
    base: int
    index: Index
    offset: int = 0  # bytes
    offset_register: int = 0
    extension: str = ""
    shift: int | None = None  # shown even if 0

    @property
    def is_load(self) -> bool:
        """Whether it reads memory."""
        return self.mnemonic.startswith("ld")

    @property
    def is_simd(self) -> bool:
        """Whether its registers are SIMD&FP registers."""
        return self.letter not in "wx"

    @property
    def writes_back(self) -> bool:
        """Whether it changes the base register."""
        return self.index in (Index.POST, Index.PRE)

    @property
    def is_unpredictable(self) -> bool:
        """Whether its result is CONSTRAINED UNPREDICTABLE: it writes a register twice."""
        if self.is_load and len(set(self.registers)) < len(self.registers):
            return True
        based = self.base in self.registers and self.base != SP_OR_ZR
        return self.writes_back and based and not self.is_simd

    def address(self, base: int, offset: int = 0) -> tuple[int, int]:
        """Return the address, and the base register afterwards.

        ``base`` and ``offset`` are the values of the base and the offset register.
        """
        if self.index == Index.REGISTER:
            return (base + self._extended(offset)) & _U64, base
        moved = (base + self.offset) & _U64
        return (base if self.index == Index.POST else moved), moved if self.writes_back else base

    def extend(self, value: int) -> int:
        """Return a loaded value as it is written to a register of 64 or 128 bits."""
        if self.mnemonic[-2:] not in ("sb", "sh", "sw"):
            return value
        return _signed(value, 8 * self.size) & (1 << 8 * REGISTER_BYTES[self.letter]) - 1

    def _extended(self, offset: int) -> int:
        if self.extension.endswith("w"):
            offset &= 0xFFFF_FFFF
        if self.extension == "sxtw":
            offset = _signed(offset, 32)
        return offset << (self.shift or 0)

    def __str__(self) -> str:
        data = ", ".join(name(self.letter, number) for number in self.registers)
        return f"{self.mnemonic} {data}, {self._address_text()}"

    def _address_text(self) -> str:
        base = "sp" if self.base == SP_OR_ZR else f"x{self.base}"
        if self.index == Index.POST:
            return f"[{base}], #{self.offset}"
        if self.index == Index.PRE:
            return f"[{base}, #{self.offset}]!"
        if self.index == Index.OFFSET:
            return f"[{base}, #{self.offset}]" if self.offset else f"[{base}]"
        offset = name("w" if self.extension.endswith("w") else "x", self.offset_register)
        shift = "" if self.shift is None else f" #{self.shift}"
        if self.extension == "lsl" and not shift:
            return f"[{base}, {offset}]"
        return f"[{base}, {offset}, {self.extension}{shift}]"


_U64 = 0xFFFF_FFFF_FFFF_FFFF


def name(letter: str, number: int) -> str:
    """Return a data register's name."""
    zero = number == SP_OR_ZR and letter in "wx"
    return f"{letter}zr" if zero else f"{letter}{number}"


def decode(instruction: int) -> LoadStore | None:
    """Decode a load or store of one or two registers; None for any other instruction."""
    word = Word(instruction)
    for group in GROUPS:
        if word & group.mask == group.value:
            return _pair(word, group) if group.is_pair else _single(word, group)
    return None


def _pair(word: Word, group: Group) -> LoadStore | None:
    kind = PAIRS.get((word.V, word.size, word.L))
    if kind is None or (group.letter and kind[0] == "ldpsw"):
        return None
    stem, letter, size = kind
    return LoadStore(
        mnemonic=stem.replace("*", group.letter),
        letter=letter,
        registers=(word.Rt, word.Rt2),
        size=size,
        base=word.Rn,
        index=group.index,
        offset=_signed(word.imm7, 7) * size,
    )


def _single(word: Word, group: Group) -> LoadStore | None:
    kind = SINGLES.get((word.V, word.size, word.opc))
    extension = EXTENSIONS.get(word.option, "")
    if kind is None or (group.index == Index.REGISTER and not extension):
        return None
    stem, letter, size = kind
    made = LoadStore(
        mnemonic=stem.replace("*", group.letter),
        letter=letter,
        registers=(word.Rt,),
        size=size,
        base=word.Rn,
        index=group.index,
        offset=word.imm12 * size if group.is_scaled else _signed(word.imm9, 9),
    )
    if group.index != Index.REGISTER:
        return made
    shift = size.bit_length() - 1 if word.S else None
    return made.replace(offset=0, offset_register=word.Rm, extension=extension, shift=shift)


def _signed(value: int, width: int) -> int:
    """Return ``value`` as a number of ``width`` bits in two's complement."""
    return value - (1 << width) if value >> width - 1 & 1 else value


# Other instructions that access memory: mask, value, and the text or only the kind.
OTHERS: tuple[tuple[int, int, str], ...] = (
    # Load/store exclusive, ordered; compare and swap
    (0x3FE0_0000, 0x0800_0000, "st{release}xr{bh} {ws}, {t}, [{n}]"),
    (0x3FE0_0000, 0x0840_0000, "ld{acquire}xr{bh} {t}, [{n}]"),
    (0xBFE0_0000, 0x8820_0000, "st{release}xp {ws}, {t}, {t2}, [{n}]"),
    (0xBFE0_0000, 0x8860_0000, "ld{acquire}xp {t}, {t2}, [{n}]"),
    (0x3FE0_8000, 0x0880_0000, "stllr{bh} {t}, [{n}]"),
    (0x3FE0_8000, 0x0880_8000, "stlr{bh} {t}, [{n}]"),
    (0x3FE0_8000, 0x08C0_0000, "ldlar{bh} {t}, [{n}]"),
    (0x3FE0_8000, 0x08C0_8000, "ldar{bh} {t}, [{n}]"),
    (0x3FA0_7C00, 0x08A0_7C00, "cas{cas}{bh} {s}, {t}, [{n}]"),
    (0xBFA0_7C00, 0x0820_7C00, "casp{cas} {p0}, {p1}, {p2}, {p3}, [{n}]"),
    # Atomic memory operations
    (0x3F20_8C00, 0x3820_0000, "{atomic}{order}{bh} {s}, {t}, [{n}]"),
    (0x3F20_FC00, 0x3820_8000, "swp{order}{bh} {s}, {t}, [{n}]"),
    (0x3FFF_FC00, 0x38BF_C000, "ldapr{bh} {t}, [{n}]"),
    # System instructions: DC ZVA zeroes a block of memory
    (0xFFFF_FFE0, 0xD50B_7420, "dc zva, {xt}"),
    (0xFFF8_F000, 0xD508_7000, "cache maintenance or address translation"),
    # Groups that are only named
    (0x9E00_0000, 0x8400_0000, "an SVE load or store"),
    (0xBE00_0000, 0x0C00_0000, "a SIMD load or store of structures"),
    (0x3B20_0C00, 0x1900_0000, "a load-acquire or store-release with an offset"),
    (0x3B20_0C00, 0x1900_0400, "a memory copy or set"),
    (0xFF20_0000, 0xD920_0000, "a load or store of memory tags"),
    (0xFE40_0000, 0x6800_0000, "a store of a pair with memory tags"),
    (0xFF20_0400, 0xF820_0400, "a load with pointer authentication"),
    (0x3B00_0000, 0x1800_0000, "a load from an address relative to PC"),
)
_ATOMICS = ("ldadd", "ldclr", "ldeor", "ldset", "ldsmax", "ldsmin", "ldumax", "ldumin")


def describe(instruction: int) -> str:
    """Return an instruction as an assembler writes it, or its kind if pyvmm decodes no more."""
    if known := decode(instruction):
        return str(known)
    for mask, value, text in OTHERS:
        if instruction & mask == value:
            shown = text.format_map(_operands(Word(instruction)))
            return shown if "{" in text else f"{text} ({instruction:#010x})"
    return f"the instruction {instruction:#010x}"


def _operands(word: Word) -> dict[str, str]:
    """Return the values of the placeholders in OTHERS."""
    size, opc, ordered = word.size, word.opc, word >> 15 & 1
    data = "x" if size == 3 else "w"
    pair = "x" if size & 1 else "w"
    return {
        "t": name(data, word.Rt),
        "t2": name(data, word.Rt2),
        "s": name(data, word.Rs),
        "ws": name("w", word.Rs),
        "xt": name("x", word.Rt),
        "n": "sp" if word.Rn == SP_OR_ZR else f"x{word.Rn}",
        "p0": name(pair, word.Rs),
        "p1": name(pair, word.Rs + 1),
        "p2": name(pair, word.Rt),
        "p3": name(pair, word.Rt + 1),
        "bh": "bh"[size] if size < 2 else "",
        "order": ("", "l", "a", "al")[opc],
        "cas": "a" * (opc & 1) + "l" * ordered,
        "acquire": "a" * ordered,
        "release": "l" * ordered,
        "atomic": _ATOMICS[word >> 12 & 7],
    }
