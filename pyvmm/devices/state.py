"""Saved state of devices: the attributes that a snapshot holds beside the registers.

    class Pl031(Device):
        state_fields = (StateField("offset", -SECONDS, SECONDS), StateField("_raised", 0, 1))

An attribute is a number, a bool, or (with ``room``) a list of numbers. A snapshot is untrusted
input, so a restore checks each value against its declaration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from pyvmm.base.output import printable
from pyvmm.base.records import Record
from pyvmm.errors import UsageError


class StateField(Record):
    """A saved attribute: its bounds, both included, and a list's largest length.

    ``key`` is its name in a snapshot; by default the attribute's name, without underscores. A state
    may lack an ``optional`` one, which older versions did not save: then it keeps its value.
    """

    attribute: str
    least: int
    most: int
    room: int | None = None
    key: str = ""
    optional: bool = False

    @property
    def name(self) -> str:
        """The attribute's name in a snapshot."""
        return self.key or self.attribute.lstrip("_")


class StateError(UsageError):
    """A device state in a snapshot that is invalid or does not match this machine."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(printable(message), hint=hint)


def save_fields(owner: object, fields: Iterable[StateField]) -> dict[str, Any]:
    """Return those attributes of a device, for JSON."""
    state: dict[str, Any] = {}
    for field in fields:
        value = getattr(owner, field.attribute)
        state[field.name] = value if field.room is None else list(value)
    return state


def restore_fields(owner: object, fields: Iterable[StateField], state: object, where: str) -> None:
    """Set those attributes from a snapshot's state; ``where`` is its name in messages.

    Raises: StateError; then no attribute has changed.
    """
    checked = {
        field: _checked(field, getattr(owner, field.attribute), state, where) for field in fields
    }
    for field, value in checked.items():
        setattr(owner, field.attribute, value)


def section(state: object, name: str, where: str) -> Mapping[str, Any]:
    """Return an object within a device's state.

    Raises: StateError.
    """
    found = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(found, Mapping):
        raise StateError(f"{where} has no {name}")
    return found


def checked_runs(state: object, name: str, where: str) -> list[tuple[int, int]]:
    """Return the runs of numbers in a device's state: the first number and the count of each.

    Raises: StateError.
    """
    runs = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(runs, list):
        raise StateError(f"{where} has no {name}")
    for run in runs:
        if not (isinstance(run, list) and [type(number) for number in run] == [int, int]):
            raise StateError(f"{where}.{name} has {str(run)[:40]}, not a run")
    return [(first, count) for first, count in runs]


def _checked(field: StateField, now: Any, state: object, where: str) -> object:
    """Return the state's value of an attribute, if it is valid."""
    if not isinstance(state, Mapping) or field.name not in state:
        if field.optional and isinstance(state, Mapping):
            return now
        raise StateError(f"{where}.{field.name} is missing")
    value = state[field.name]
    if field.room is None:
        # True is an int to Python, but not here.
        if type(value) is not type(now) or not field.least <= value <= field.most:
            raise _wrong(field, value, where)
        return value
    if not isinstance(value, list) or len(value) > field.room:
        raise _wrong(field, value, where)
    if not all(type(number) is int and field.least <= number <= field.most for number in value):
        raise _wrong(field, value, where)
    return deque(value) if isinstance(now, deque) else value


def _wrong(field: StateField, value: object, where: str) -> StateError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    many = "" if field.room is None else f"up to {field.room} of "
    return StateError(f"{where}.{field.name} is {shown}, not {many}{field.least} to {field.most}")
