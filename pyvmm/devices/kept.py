"""What a device keeps beside its registers, declared, so that snapshots take it along.

    class Pl031(Device):
        kept = (Kept("offset", -SECONDS, SECONDS), Kept("_raised", 0, 1))

The names are attributes: numbers, truth values, or (with ``room``) lists of numbers. What comes
back is checked against the declaration: a snapshot is untrusted input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from pyvmm.base.records import Record
from pyvmm.errors import UsageError


class Kept(Record):
    """An attribute: its bounds, both included, and for a list how many there may be."""

    attribute: str
    least: int
    most: int
    room: int | None = None

    @property
    def name(self) -> str:
        """What it is called in a snapshot."""
        return self.attribute.lstrip("_")


class StateError(UsageError):
    """A device's state in a snapshot is none that such a device can have."""


def take(owner: object, kept: Iterable[Kept]) -> dict[str, Any]:
    """The kept attributes of a device, as JSON has them."""
    state: dict[str, Any] = {}
    for item in kept:
        value = getattr(owner, item.attribute)
        state[item.name] = value if item.room is None else list(value)
    return state


def give(owner: object, kept: Iterable[Kept], state: object, where: str) -> None:
    """Set them to what a snapshot has; ``where`` is what messages call it.

    Raises: StateError; nothing was set then.
    """
    checked = {item: _checked(item, getattr(owner, item.attribute), state, where) for item in kept}
    for item, value in checked.items():
        setattr(owner, item.attribute, value)


def part(state: object, name: str, where: str) -> Mapping[str, Any]:
    """An object within a device's state.

    Raises: StateError.
    """
    found = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(found, Mapping):
        raise StateError(f"{where} has no {name}")
    return found


def _checked(item: Kept, now: Any, state: object, where: str) -> object:
    """What the state has for an attribute, if it is what may stand there."""
    if not isinstance(state, Mapping) or item.name not in state:
        raise StateError(f"{where}.{item.name} is missing")
    value = state[item.name]
    if item.room is None:
        # True is an int to Python, but not here.
        if type(value) is not type(now) or not item.least <= value <= item.most:
            raise _wrong(item, value, where)
        return value
    if not isinstance(value, list) or len(value) > item.room:
        raise _wrong(item, value, where)
    if not all(type(number) is int and item.least <= number <= item.most for number in value):
        raise _wrong(item, value, where)
    return deque(value) if isinstance(now, deque) else value


def _wrong(item: Kept, value: object, where: str) -> StateError:
    said = repr(value)
    said = said if len(said) <= 40 else f"{said[:40]}..."
    many = "" if item.room is None else f"up to {item.room} of "
    return StateError(f"{where}.{item.name} is {said}, not {many}{item.least} to {item.most}")
