"""Records to JSON and back, by the types of their fields.

A snapshot is untrusted input: every field is checked.  A missing field takes its default, so that
older documents stay readable.  An unknown field is damage: newer documents have a newer schema.

| type of a field           | in JSON                                              |
|---------------------------|------------------------------------------------------|
| int, bool, str, float     | themselves                                           |
| Path                      | text                                                 |
| Enum                      | the member's name                                    |
| T or None                 | null, or T                                           |
| tuple[T, ...]             | a list                                               |
| frozenset[T]              | a sorted list                                        |
| dict[str, T]              | an object                                            |
| a record                  | an object of its fields                              |
| records A or B            | the same, and "kind" with the class's name           |
| a record with subclasses  | likewise: one of the subclasses                      |
| Annotated[T, Form(...)]   | as the Form converts it                              |
"""

from __future__ import annotations

import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pyvmm.base.output import printable
from pyvmm.base.records import Record
from pyvmm.errors import UsageError, VmmError

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

KIND: Final = "kind"
PLAIN: Final = (int, str, bool, float)
DIGITS: Final = 2 * 512  # hexadecimal digits of the widest number, a register of 512 bytes

T = TypeVar("T", bound=Record)


class Damaged(UsageError):
    """A damaged document; the message has the place and the value, on one line."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(printable(message), hint=hint)


class Form(Record):
    """The JSON form of an annotated type; ``read`` raises ValueError for other values."""

    write: Callable[[Any], Json]
    read: Callable[[Any], Any]


def hexadecimal(value: int, digits: int = 1) -> str:
    """Return a number as text: JSON numbers lose bits beyond 2^53."""
    return f"{value:#0{2 + digits}x}"


def read_hexadecimal(text: Any) -> int:
    """Return the number in a text that hexadecimal() wrote.

    Raises: ValueError.
    """
    if not isinstance(text, str) or not text.startswith("0x") or len(text) > 2 + DIGITS:
        raise ValueError(text)
    return int(text, 16)


def _read_registers(value: Any) -> dict[int, int]:
    if not isinstance(value, dict):
        raise ValueError(value)
    return {_read_64(key): _read_64(held) for key, held in value.items()}


def _read_64(text: Any) -> int:
    number = read_hexadecimal(text)
    if number >> 64:
        raise ValueError(text)
    return number


Hex = Annotated[int, Form(hexadecimal, _read_64)]
# 32-bit registers by their offset or number
HexTable = Annotated[
    dict[int, int],
    Form(lambda table: {hexadecimal(k, 4): hexadecimal(v, 8) for k, v in table.items()},
         _read_registers),
]  # fmt: skip


def encode(value: Record) -> dict[str, Json]:
    """Return a record as JSON."""
    hints = _hints(type(value))
    return {name: _write(hints[name], getattr(value, name)) for name in value.record_fields}


def decode(kind: type[T], document: Any, where: str) -> T:
    """Return the record in a document; ``where`` is for messages.

    Raises: Damaged, also if the class refuses the values.
    """
    if not isinstance(document, dict):
        raise _damage(where, document, "not an object")
    hints = _hints(kind)
    for name in document.keys() - kind.record_fields.keys():
        raise _damage(f"{where}.{str(name)[:40]}", document[name], "no such field")
    values = {}
    for name in kind.record_fields:
        if name in document:
            values[name] = _read(hints[name], document[name], f"{where}.{name}")
        elif name not in kind.record_defaults:
            raise Damaged(f"{where}.{name} is missing")
    try:
        return kind(**values)
    except VmmError as error:
        raise Damaged(f"{where}: {error.message}") from None


_hints_of: dict[type, dict[str, Any]] = {}  # a cache: get_type_hints() is slow


def learn(kind: type) -> None:
    """Cache the field types of a record and of all records in it.

    An emulated host's agent loads the classes long before their first use.
    """
    waiting: list[Any] = [kind]
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        if _is_record(hint) and hint not in _hints_of:
            waiting += [*_hints(hint).values(), *hint.__subclasses__()]


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Record)


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _hints_of:
        _hints_of[kind] = get_type_hints(kind, include_extras=True)
    return _hints_of[kind]


def _write(hint: Any, value: Any) -> Json:
    """Return a value of that type as JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return cast("Json", arguments[1].write(value))
    if origin in (Union, types.UnionType):
        return _write_choice(arguments, value)
    if origin is tuple:
        return [_write(arguments[0], item) for item in value]
    if origin is frozenset:
        items: list[Any] = [_write(arguments[0], item) for item in value]
        return sorted(items)
    if origin is dict:
        return {key: _write(arguments[1], item) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return str(value.name)
    if hint is Path:
        return str(value.absolute())  # the reader has another working directory
    if not isinstance(value, Record):
        return cast("Json", value)
    return _write_kind(value) if hint.__subclasses__() else encode(value)


def _write_choice(choices: tuple[Any, ...], value: Any) -> Json:
    if value is None:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    if len(rest) == 1:
        return _write(rest[0], value)
    return _write_kind(value)


def _write_kind(value: Any) -> Json:
    return {KIND: type(value).__name__, **encode(value)}


def _read(hint: Any, value: Any, where: str) -> Any:
    """Return the value of that type in JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        try:
            return arguments[1].read(value)
        except ValueError:
            raise _damage(where, value, "malformed") from None
    if origin in (Union, types.UnionType):
        return _read_choice(arguments, value, where)
    if origin in (tuple, frozenset):
        if not isinstance(value, list):
            raise _damage(where, value, "not a list")
        read = (_read(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(value))
        return tuple(read) if origin is tuple else frozenset(read)
    if origin is dict:
        if not isinstance(value, dict):
            raise _damage(where, value, "not an object")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _read_one(hint, value, where)


def _read_one(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if _is_record(hint):
        kinds = hint.__subclasses__()
        return _read_kind(kinds, value, where) if kinds else decode(hint, value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if not isinstance(value, str) or value not in hint.__members__:
            raise _damage(where, value, f"not one of {', '.join(hint.__members__)}")
        return hint[value]
    if hint is float and type(value) is int:
        return value
    kind = str if hint is Path else hint
    if kind not in PLAIN or type(value) is not kind:
        raise _damage(where, value, f"not {getattr(hint, '__name__', hint)}")
    return Path(value) if hint is Path else value


def _read_choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    rest = [choice for choice in choices if choice is not type(None)]
    if value is None and len(rest) < len(choices):
        return None
    if len(rest) == 1:
        return _read(rest[0], value, where)
    return _read_kind(rest, value, where)


def _read_kind(choices: list[Any], value: Any, where: str) -> Any:
    """Return a record that names its class."""
    named = {choice.__name__: choice for choice in choices}
    kind = value.get(KIND) if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in named:
        raise _damage(where, value, f"its kind is not one of {', '.join(named)}")
    return decode(named[kind], {k: v for k, v in value.items() if k != KIND}, where)


def _damage(where: str, value: object, reason: str) -> Damaged:
    said = repr(value)
    return Damaged(f"{where} is {said if len(said) <= 40 else said[:40] + '...'}: {reason}")
