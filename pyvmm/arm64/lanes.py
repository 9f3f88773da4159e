"""Values of SVE's registers: a number, the vector length it is at, and its lanes.

    z = Vector.of(512, s=range(16))      # sixteen lanes of 32 bits
    z.s[3], z.s.signed, z.s.float        # 3, and all lanes as other types
    z.replace(s={3: -1.5})               # the same but for one lane

    p = Predicate.of(512, s=[True] * 4)  # the first four 32-bit lanes are active
    p.s[3], p.b                          # True, and which byte lanes are active

Lengths are in bits.  Lane 0 is the least significant, and in memory the first.
Source: Arm ARM DDI 0487, B1.2 "Registers in AArch64 Execution state".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

from pyvmm.arm64.vl import QUADWORD
from pyvmm.base.records import Record

LANES = {"b": 8, "h": 16, "s": 32, "d": 64, "q": 128}  # bits, by the assembler's suffix
PREDICATE_SHARE = 8  # a predicate has a bit for each byte of a vector
_Real = float  # Lanes has an attribute of that name
_FLOATS = {16: "<e", 32: "<f", 64: "<d"}  # IEEE 754, as struct writes them


class Lanes(tuple[int, ...]):
    """The lanes of a vector, first lane first: a tuple of unsigned numbers.

    ``bits`` is the size of one.
    """

    bits: int

    def __new__(cls, numbers: Iterable[int], bits: int) -> Self:
        """Lanes of that many bits."""
        lanes = super().__new__(cls, numbers)
        lanes.bits = bits
        return lanes

    @property
    def unsigned(self) -> tuple[int, ...]:
        """Unsigned numbers."""
        return tuple(self)

    @property
    def signed(self) -> tuple[int, ...]:
        """Two's complement numbers."""
        beyond = 1 << self.bits
        return tuple(lane - beyond if lane >> self.bits - 1 else lane for lane in self)

    @property
    def float(self) -> tuple[_Real, ...]:
        """IEEE 754 numbers of half, single or double precision.

        Raises: TypeError, for lanes of a size that has none.
        """
        code = _FLOATS.get(self.bits)
        if code is None:
            raise TypeError(f"lanes of {self.bits} bits hold no floating-point numbers")
        size = self.bits // 8
        return tuple(struct.unpack(code, lane.to_bytes(size, "little"))[0] for lane in self)


class Scalable(Record):
    """What vectors and predicates have in common: ``value``, all bits of it, at length ``vl``.

    Raises: ValueError, for a length that SVE cannot have, or a value that does not fit it.
    """

    value: int
    vl: int
    SHARE: ClassVar[int] = 1  # bits of a vector that one bit stands for

    def __post_init__(self) -> None:
        if self.vl < QUADWORD or self.vl % QUADWORD:
            raise ValueError(f"{self.vl} is not a vector length: not a multiple of 128 bits")
        if not 0 <= self.value < 1 << self.bits:
            raise ValueError(f"{self.value:#x} does not fit {self.bits} bits")

    @property
    def bits(self) -> int:
        """How many bits there are."""
        return self.vl // self.SHARE

    @classmethod
    def of(cls, vl: int, **lanes: Iterable[float]) -> Self:
        """The value with these lanes, as ``s=[1, 2]``, and zero in those that follow.

        A float becomes an IEEE 754 number of the lane's size, an int two's complement.

        Raises: ValueError, for more lanes than there are or a number that does not fit one.
        """
        ((suffix, items),) = lanes.items()
        return cls(0, vl).replace(**{suffix: dict(enumerate(items))})

    def replace(self, **lanes: Mapping[int, float]) -> Self:
        """The value with these lanes changed, as ``s={3: -1.5}``.

        Raises: as of() does, and TypeError for a suffix that is none of b, h, s, d and q.
        """
        value = self.value
        for suffix, items in lanes.items():
            width = self._width(suffix)
            for index, item in items.items():
                if not 0 <= index < self.bits // width:
                    raise ValueError(f"there is no lane {suffix}[{index}] in {self.vl} bits")
                lane = self._encode(item, width, f"{suffix}[{index}]")
                at = index * width
                value = value & ~((1 << width) - 1 << at) | lane << at
        return type(self)(value, self.vl)

    def at(self, vl: int) -> Self:
        """The value at another length: cut, or with zeros."""
        return type(self)(self.value & (1 << vl // self.SHARE) - 1, vl)

    def __bytes__(self) -> bytes:
        """The value as STR stores it."""
        return self.value.to_bytes(self.bits // 8, "little")

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        """The value in hexadecimal, with all its digits."""
        return f"{self.value:#0{2 + self.bits // 4}x}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self}, vl={self.vl})"

    def _width(self, suffix: str) -> int:
        if suffix not in LANES:
            raise TypeError(f"lanes are {', '.join(LANES)}, and not {suffix}")
        return LANES[suffix] // self.SHARE

    def _split(self, suffix: str) -> list[int]:
        """The bits of each lane."""
        width = self._width(suffix)
        return [self.value >> at & (1 << width) - 1 for at in range(0, self.bits, width)]

    def _encode(self, item: float, width: int, place: str) -> int:
        """The bits of a lane that is to hold that."""
        raise NotImplementedError


class Vector(Scalable):
    """The value of a Z register (or of a V, at 128 bits)."""

    @property
    def b(self) -> Lanes:
        """Lanes of 8 bits."""
        return Lanes(self._split("b"), 8)

    @property
    def h(self) -> Lanes:
        """Lanes of 16 bits."""
        return Lanes(self._split("h"), 16)

    @property
    def s(self) -> Lanes:
        """Lanes of 32 bits."""
        return Lanes(self._split("s"), 32)

    @property
    def d(self) -> Lanes:
        """Lanes of 64 bits."""
        return Lanes(self._split("d"), 64)

    @property
    def q(self) -> Lanes:
        """Lanes of 128 bits."""
        return Lanes(self._split("q"), 128)

    def _encode(self, item: float, width: int, place: str) -> int:
        if isinstance(item, int):
            if not -1 << width - 1 <= item < 1 << width:
                raise ValueError(f"{place}: {item} does not fit {width} bits")
            return item & (1 << width) - 1
        code = _FLOATS.get(width)
        if code is None:
            raise ValueError(f"{place}: there are no floating-point numbers of {width} bits")
        try:
            return int.from_bytes(struct.pack(code, item), "little")
        except OverflowError as error:
            raise ValueError(f"{place}: {item} does not fit a float of {width} bits") from error


class Predicate(Scalable):
    """The value of a P register or of FFR: for each lane, whether it is active.

    Of a lane's bits the lowest decides; the others are in ``value`` alone.
    """

    SHARE: ClassVar[int] = PREDICATE_SHARE

    @property
    def b(self) -> tuple[bool, ...]:
        """Lanes of 8 bits."""
        return self._active("b")

    @property
    def h(self) -> tuple[bool, ...]:
        """Lanes of 16 bits."""
        return self._active("h")

    @property
    def s(self) -> tuple[bool, ...]:
        """Lanes of 32 bits."""
        return self._active("s")

    @property
    def d(self) -> tuple[bool, ...]:
        """Lanes of 64 bits."""
        return self._active("d")

    @property
    def q(self) -> tuple[bool, ...]:
        """Lanes of 128 bits."""
        return self._active("q")

    def _active(self, suffix: str) -> tuple[bool, ...]:
        return tuple(bool(lane & 1) for lane in self._split(suffix))

    def _encode(self, item: float, width: int, place: str) -> int:
        if item not in (0, 1):
            raise ValueError(f"{place}: {item} is neither True nor False")
        return int(item)
