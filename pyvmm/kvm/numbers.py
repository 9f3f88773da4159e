"""Tables of the kernel's numbers, with their names.

    class DeviceType(Numbers):
        VFIO = 4
        ARM_VGIC_V2 = 5

    DeviceType.VFIO == 4, DeviceType.name_of(5) == "ARM_VGIC_V2"

An enum.IntEnum costs more at import: with it the tables of caps.py and uapi.py take 19 million
instructions more, 8 % of a start.
"""

from __future__ import annotations

from typing import ClassVar


class Number(int):
    """A number with a name."""

    name: str

    def __repr__(self) -> str:
        return f"<{self.name}: {int(self)}>"


class Numbers:
    """The base of a table; its members are ints, for type checkers too."""

    members: ClassVar[dict[str, int]] = {}

    def __init_subclass__(cls) -> None:
        cls.members = {}
        for name, value in tuple(vars(cls).items()):
            # Not Python's own names: 3.13 puts __firstlineno__ into every class.
            if isinstance(value, int) and not name.startswith("__"):
                cls.members[name] = number = Number(value)
                number.name = name
                setattr(cls, name, number)

    @classmethod
    def of(cls, value: int) -> int:
        """Return the number with its name; return a number without a name unchanged."""
        return next((number for number in cls.members.values() if number == value), value)

    @classmethod
    def name_of(cls, value: int) -> str:
        """Return the number's name, or the number itself as text."""
        number = cls.of(value)
        return number.name if isinstance(number, Number) else str(value)
