"""Records: classes of plain data, declared by their fields.

    class Disk(Record):
        path: Path
        read_only: bool = False

    disk = Disk(Path("a.img"))
    disk.replace(read_only=True)

A record behaves like a frozen dataclass, for type checkers too; ``dataclasses.fields`` and
``asdict`` accept it. Records share their methods, and so start faster. A run imports two dozen
such classes: at import a frozen dataclass with slots costs 5 million instructions, a NamedTuple 1.4
million, a Record 0.4 million.

The fields are a class's own annotations, in their order. A module with records needs ``from
__future__ import annotations``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import Field

T = TypeVar("T")


class _Made:
    """A default value that is created separately for each record."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def made(make: Callable[[], T]) -> T:
    """Return a default: ``make`` is called for each record created without the field."""
    return cast("T", _Made(make))


class _Fields:
    """A record's fields for the dataclasses module, made on its first access."""

    def __get__(self, record: Record | None, kind: type[Record]) -> dict[str, Field[Any]]:
        from dataclasses import MISSING, field, make_dataclass

        fields: list[tuple[str, Any, Field[Any]]] = []
        for name, annotation in kind.record_fields.items():
            default = kind.record_defaults.get(name, MISSING)
            made = isinstance(default, _Made)
            about = field(default_factory=default.make) if made else field(default=default)
            fields.append((name, annotation, about))
        like: Any = make_dataclass(kind.__name__, fields, kw_only=True)
        kind.__dataclass_fields__ = like.__dataclass_fields__
        return kind.__dataclass_fields__


@dataclass_transform(frozen_default=True)
class Record:
    """The base of records; a subclass may check its fields in ``__post_init__``.

    With ``kw_only`` its fields are given by name only. With ``frozen=False`` fields may change, and
    records have no hash.

    Raises: TypeError, for an unknown field and for a missing field without a default.
    """

    record_fields: ClassVar[dict[str, str]] = {}  # name -> annotation, those of a base class first
    record_defaults: ClassVar[dict[str, Any]] = {}
    _positional: ClassVar[bool] = True
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, *, kw_only: bool = False, frozen: bool = True) -> None:
        # Since Python 3.10 this attribute has a class's own annotations, or an empty dict.
        # inspect.get_annotations returns the same, but importing inspect or annotationlib (3.14)
        # takes 10 ms or more of each start.
        own = {
            name: annotation
            for name, annotation in cls.__annotations__.items()
            if not annotation.startswith("ClassVar")
        }
        cls.record_fields = cls.record_fields | own
        cls.record_defaults = cls.record_defaults | {
            name: vars(cls)[name] for name in own if name in vars(cls)
        }
        cls._positional = not kw_only
        cls.__dataclass_fields__ = cast("Any", _Fields())
        if not frozen:
            # Ignored: mypy accepts no assignment to a method, and no None as __hash__.
            cls.__setattr__ = object.__setattr__  # type: ignore[method-assign, assignment]
            cls.__delattr__ = object.__delattr__  # type: ignore[method-assign]
            cls.__hash__ = None  # type: ignore[method-assign, assignment]

    def __init__(self, *in_order: Any, **values: Any) -> None:
        kind = type(self)
        names = list(kind.record_fields) if kind._positional else []
        if len(in_order) > len(names):
            raise TypeError(f"{kind.__name__} takes {len(names)} positional values")
        for name, value in zip(names, in_order, strict=False):
            if name in values:
                raise TypeError(f"{kind.__name__}: {name} is given twice")
            values[name] = value
        for name in kind.record_fields:
            if name in values:
                value = values.pop(name)
            elif name in kind.record_defaults:
                value = kind.record_defaults[name]
                value = value.make() if isinstance(value, _Made) else value
            else:
                raise TypeError(f"{kind.__name__}: {name} is missing")
            object.__setattr__(self, name, value)
        if values:
            raise TypeError(f"{kind.__name__} has no field {', '.join(values)}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check a new record; a subclass raises an error if it is invalid."""

    def replace(self, **changes: Any) -> Self:
        """Return a record with other values in those fields; it is checked like a new one.

        Raises: TypeError, for an unknown field.
        """
        return type(self)(**{name: getattr(self, name) for name in self.record_fields} | changes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = zip(self.record_fields, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.record_fields)
