"""Tables of the kernel's numbers, which know their names.

    class DeviceType(Numbers):
        VFIO = 4
        ARM_VGIC_V2 = 5

    DeviceType.VFIO == 4, DeviceType.name_of(5) == "ARM_VGIC_V2"

What enum.IntEnum does with such a class costs 30 times as much, for each name, when its module is
imported: a third of a million instructions a class, and KVM has two dozen of them.
"""

from __future__ import annotations

from typing import ClassVar


class Number(int):
    """A number that has a name."""

    name: str

    def __repr__(self) -> str:
        return f"<{self.name}: {int(self)}>"


class Numbers:
    """The base of a table; to Python and type checkers its members are ints."""

    members: ClassVar[dict[str, int]] = {}

    def __init_subclass__(cls) -> None:
        cls.members = {}
        for name, value in tuple(vars(cls).items()):
            # Python's own names stay out: 3.13 puts __firstlineno__ into every class.
            if isinstance(value, int) and not name.startswith("__"):
                cls.members[name] = number = Number(value)
                number.name = name
                setattr(cls, name, number)

    @classmethod
    def of(cls, value: int) -> int:
        """Return the number with its name. A number without a name stays as it is."""
        return next((number for number in cls.members.values() if number == value), value)

    @classmethod
    def name_of(cls, value: int) -> str:
        """Return the number's name, or the number itself in words."""
        number = cls.of(value)
        return number.name if isinstance(number, Number) else str(value)
