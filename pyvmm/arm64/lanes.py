"""Values of SVE registers, with their vector lengths and lanes.

    z = Vector.of(512, s=range(16))      # sixteen lanes of 32 bits
    z.s[3], z.s.signed, z.s.float        # lane 3; all lanes as other types
    z.replace(s={3: -1.5})               # a copy with one lane changed

    p = Predicate.of(512, s=[True] * 4)  # the first four 32-bit lanes are active
    p.s[3], p.b                          # True; for each byte lane, whether it is active

Lengths are in bits.  Lane 0 is the least significant, and the first in memory.
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
_Real = float  # Lanes has an attribute named float
_FLOATS = {16: "<e", 32: "<f", 64: "<d"}  # IEEE 754, as struct writes them


class Lanes(tuple[int, ...]):
    """The lanes of a vector as unsigned numbers, lane 0 first; each has ``bits`` bits."""

    bits: int

    def __new__(cls, numbers: Iterable[int], bits: int) -> Self:
        """Make lanes of that many bits each."""
        lanes = super().__new__(cls, numbers)
        lanes.bits = bits
        return lanes

    @property
    def signed(self) -> tuple[int, ...]:
        """Two's complement numbers."""
        modulus = 1 << self.bits
        return tuple(lane - modulus if lane >> self.bits - 1 else lane for lane in self)

    @property
    def float(self) -> tuple[_Real, ...]:
        """IEEE 754 numbers of half, single or double precision.

        Raises: TypeError, for lanes of 8 or 128 bits.
        """
        code = _FLOATS.get(self.bits)
        if code is None:
            raise TypeError(f"lanes of {self.bits} bits hold no floating-point numbers")
        size = self.bits // 8
        return tuple(struct.unpack(code, lane.to_bytes(size, "little"))[0] for lane in self)


class Scalable(Record):
    """The base of vectors and predicates: all bits as ``value``, at vector length ``vl``.

    Raises: ValueError, for a length that SVE does not allow, or a value that does not fit.
    """

    value: int
    vl: int
    SHARE: ClassVar[int] = 1  # vector bits for each bit of the value

    def __post_init__(self) -> None:
        if self.vl < QUADWORD or self.vl % QUADWORD:
            raise ValueError(f"{self.vl} is not a vector length: not a multiple of 128 bits")
        if not 0 <= self.value < 1 << self.bits:
            raise ValueError(f"{self.value:#x} does not fit {self.bits} bits")

    @property
    def bits(self) -> int:
        """The number of bits of the value."""
        return self.vl // self.SHARE

    @classmethod
    def of(cls, vl: int, **lanes: Iterable[float]) -> Self:
        """Return a value with these first lanes, as ``s=[1, 2]``, the others zero.

        A float becomes an IEEE 754 number of the lane's size, an int two's complement.

        Raises: ValueError, for too many lanes or a number that does not fit.
        """
        ((suffix, items),) = lanes.items()
        return cls(0, vl).replace(**{suffix: dict(enumerate(items))})

    def replace(self, **lanes: Mapping[int, float]) -> Self:
        """Return a copy with these lanes changed, as ``s={3: -1.5}``.

        Raises: the errors of of(), and TypeError for a suffix other than b, h, s, d and q.
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
        """Return the value at another length, truncated or extended with zeros."""
        return type(self)(self.value & (1 << vl // self.SHARE) - 1, vl)

    def __bytes__(self) -> bytes:
        """Return the bytes that STR stores."""
        return self.value.to_bytes(self.bits // 8, "little")

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        """Return the value in hexadecimal, with leading zeros."""
        return f"{self.value:#0{2 + self.bits // 4}x}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self}, vl={self.vl})"

    def _width(self, suffix: str) -> int:
        if suffix not in LANES:
            raise TypeError(f"lanes are {', '.join(LANES)}, not {suffix}")
        return LANES[suffix] // self.SHARE

    def split(self, suffix: str) -> list[int]:
        """Return the bits of each lane."""
        width = self._width(suffix)
        return [self.value >> at & (1 << width) - 1 for at in range(0, self.bits, width)]

    def _encode(self, item: float, width: int, place: str) -> int:
        """Return a lane's bits for a number."""
        raise NotImplementedError


class _Suffix:
    """An attribute named by an assembler's suffix: the lanes of that size."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


class _VectorLanes(_Suffix):
    def __get__(self, vector: Vector, owner: type) -> Lanes:
        return Lanes(vector.split(self.name), LANES[self.name])


class _PredicateLanes(_Suffix):
    def __get__(self, predicate: Predicate, owner: type) -> tuple[bool, ...]:
        return tuple(bool(lane & 1) for lane in predicate.split(self.name))


class Vector(Scalable):
    """The value of a Z register, or at 128 bits of a V register."""

    b = _VectorLanes()
    h = _VectorLanes()
    s = _VectorLanes()
    d = _VectorLanes()
    q = _VectorLanes()

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

    A lane is active if its lowest bit is set. Its other bits are only in ``value``.
    """

    SHARE: ClassVar[int] = PREDICATE_SHARE

    b = _PredicateLanes()
    h = _PredicateLanes()
    s = _PredicateLanes()
    d = _PredicateLanes()
    q = _PredicateLanes()

    def _encode(self, item: float, width: int, place: str) -> int:
        if item not in (0, 1):
            raise ValueError(f"{place}: {item} is neither True nor False")
        return int(item)
