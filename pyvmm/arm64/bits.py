"""Registers as declarations of their bit fields.

    class Esr(Bits):
        EC = bits(31, 26, "exception class", ExceptionClass)
        IL = bit(25, "the instruction was 32 bits long")
        ISS = bits(24, 0, "syndrome, its meaning set by EC")

A Bits is an int whose fields are attributes: Esr(0x5600_0007).EC is ExceptionClass.SVC64, and
str() gives "0x56000007 (EC=SVC64 IL=1 ISS=0x7)".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Self, cast, overload


class Field:
    """Bits ``hi`` to ``lo`` of a register; ``values`` names what they may hold.

    A value that has no name is a reserved one, and stays an int: what a guest or a machine put
    there is not an error.
    """

    __slots__ = ("hi", "lo", "meaning", "name", "values")

    def __init__(self, hi: int, lo: int, meaning: str, values: type[IntEnum] | None) -> None:
        if not 0 <= lo <= hi:
            raise ValueError(f"bits {hi} to {lo} are no field")
        self.hi = hi
        self.lo = lo
        self.meaning = meaning
        self.values = values
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, register: None, owner: type) -> Field: ...
    @overload
    def __get__(self, register: Bits, owner: type) -> int: ...
    def __get__(self, register: Bits | None, owner: type) -> Field | int:
        return self if register is None else self.get(register)

    @property
    def largest(self) -> int:
        """The largest value that fits."""
        return (1 << self.hi - self.lo + 1) - 1

    @property
    def mask(self) -> int:
        """The field's bits in its register."""
        return self.largest << self.lo

    def get(self, register: int) -> int:
        """The field's value, by name where it has one."""
        value = register >> self.lo & self.largest
        if self.values is not None and value in self.values.__members__.values():
            return self.values(value)
        return value

    def word(self, register: int) -> str:
        """The field's value as people read it: its name, or a number."""
        return _word(self.get(register))

    def put(self, register: int, value: int) -> int:
        """The register with this value in the field.

        Raises ValueError where it does not fit.
        """
        if not 0 <= value <= self.largest:
            raise ValueError(f"{self.name}={value:#x} does not fit bits {self.hi}:{self.lo}")
        return register & ~self.mask | value << self.lo


def bits(hi: int, lo: int, meaning: str, values: type[IntEnum] | None = None) -> Field:
    """Declare the field of bits ``hi`` to ``lo``."""
    return Field(hi, lo, meaning, values)


def bit(number: int, meaning: str, values: type[IntEnum] | None = None) -> Field:
    """Declare a field of one bit."""
    return Field(number, number, meaning, values)


def names(*in_order: str, **apart: int) -> type[IntEnum]:
    """Name a field's values: from 0 up, then those apart, names("IMP", "FP16", NI=0xF)."""
    make = cast(Callable[[str, dict[str, int]], type[IntEnum]], IntEnum)
    return make("Values", {name: value for value, name in enumerate(in_order)} | apart)


class Bits(int):
    """A register's value; a subclass declares the fields."""

    __slots__ = ()

    @classmethod
    def fields(cls) -> Iterator[Field]:
        """The fields as declared, a base class's first."""
        for base in reversed(cls.__mro__):
            yield from (item for item in vars(base).values() if isinstance(item, Field))

    @classmethod
    def of(cls, **values: int) -> Self:
        """The register with these fields, and zero in the others."""
        return cls(0).replace(**values)

    def replace(self, **values: int) -> Self:
        """The register with these fields changed.

        Raises ValueError naming a field that the value does not fit, TypeError for no such field.
        """
        fields = {field.name: field for field in self.fields()}
        result = int(self)
        for name, value in values.items():
            if name not in fields:
                raise TypeError(f"{type(self).__name__} has no field {name}")
            result = fields[name].put(result, value)
        return type(self)(result)

    def __str__(self) -> str:
        shown = " ".join(f"{field.name}={field.word(self)}" for field in self.fields())
        return f"{int(self):#x} ({shown})"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"


def _word(value: int) -> str:
    if isinstance(value, IntEnum):
        return value.name
    return f"{value:#x}" if value > 1 else str(value)
