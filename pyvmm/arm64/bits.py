"""Registers, declared by their bit fields.

    class Esr(Bits, registers="ESR_EL1 ESR_EL2"):
        EC = bits(31, 26, "exception class", ExceptionClass)
        IL = bit(25, "the instruction was 32 bits long")
        ISS = bits(24, 0, "syndrome, its meaning set by EC")

A Bits is an int with fields as attributes: Esr(0x5600_0007).EC is ExceptionClass.SVC64. Its str()
is "0x56000007 (EC=SVC64 IL=1 ISS=0x7)".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import ClassVar, Self, cast, overload


class Field:
    """Bits ``hi`` to ``lo`` of a register; ``values`` names their values.

    A reserved value has no name. It stays an int: guests and machines may have such values.
    """

    __slots__ = ("hi", "lo", "meaning", "name", "values")

    def __init__(self, hi: int, lo: int, meaning: str, values: type[IntEnum] | None = None) -> None:
        if not 0 <= lo <= hi:
            raise ValueError(f"bits {hi} to {lo} are not a field")
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
        """Return the field's value, as an enum's member where it has a name."""
        value = register >> self.lo & self.largest
        if self.values is not None and value in self.values.__members__.values():
            return self.values(value)
        return value

    def word(self, register: int) -> str:
        """Return the name of the field's value, or the value as text."""
        value = self.get(register)
        if isinstance(value, IntEnum):
            return value.name
        return f"{value:#x}" if value > 1 else str(value)

    def put(self, register: int, value: int) -> int:
        """Return the register with a new field.  Raises: ValueError, where it does not fit."""
        if not 0 <= value <= self.largest:
            raise ValueError(f"{self.name}={value:#x} does not fit bits {self.hi}:{self.lo}")
        return register & ~self.mask | value << self.lo


bits = Field


def bit(number: int, meaning: str, values: type[IntEnum] | None = None) -> Field:
    """Declare a field of one bit."""
    return Field(number, number, meaning, values)


def names(*in_order: str, **by_number: int) -> type[IntEnum]:
    """Name a field's values, in order from 0 or by number: names("IMP", "FP16", NI=0xF)."""
    make = cast(Callable[[str, dict[str, int]], type[IntEnum]], IntEnum)
    return make("Values", {name: value for value, name in enumerate(in_order)} | by_number)


class Named(IntEnum):
    """Values with meanings, each declared as ``NAME = number, meaning``."""

    meaning: str

    def __new__(cls, number: int, *about: object) -> Self:
        """Make the member of a number."""
        member = int.__new__(cls, number)
        member._value_ = number
        return member

    def __init__(self, number: int, meaning: str) -> None:
        self.meaning = meaning


def meaning(value: int) -> str | None:
    """Return the meaning of a field's value; None for a reserved value."""
    return value.meaning if isinstance(value, Named) else None


class Bits(int):
    """A register's value; a subclass declares the fields, and the ``registers`` that have them."""

    __slots__ = ()
    registers: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, registers: str = "") -> None:
        cls.registers = tuple(registers.split())

    @classmethod
    def fields(cls) -> Iterator[Field]:
        """Yield the fields in the order of their declaration, those of a base class first."""
        for base in reversed(cls.__mro__):
            yield from (item for item in vars(base).values() if isinstance(item, Field))

    @classmethod
    def of(cls, **values: int) -> Self:
        """Return a register with these fields, the others zero."""
        return cls(0).replace(**values)

    def replace(self, **values: int) -> Self:
        """Return the register with these fields changed.

        Raises: ValueError, for a value that does not fit; TypeError, for an unknown field.
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
