"""Records: classes of plain data, declared by their fields.

    class Disk(Record):
        path: Path
        read_only: bool = False

    disk = Disk(Path("a.img"))
    disk.replace(read_only=True)

A record is what a frozen dataclass is, to type checkers too; ``dataclasses.fields`` and ``asdict``
accept it.  The reason for our own is the start of a run, which imports two dozen such classes: a
frozen dataclass with slots costs 5 million instructions when its module is imported, a NamedTuple
1.4 million, a Record 0.4 million.  Records share their methods.

The fields are a class's own annotations, in their order; modules with records need ``from
__future__ import annotations``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import Field

T = TypeVar("T")


class _Made:
    """Stands for a default that is made anew for each record."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def made(make: Callable[[], T]) -> T:
    """A default: what ``make`` returns when a record is made without that field."""
    return cast("T", _Made(make))


class _Fields:
    """A record's fields as the dataclasses module has them, made when it asks."""

    def __get__(self, record: Record | None, kind: type[Record]) -> dict[str, Field[Any]]:
        from dataclasses import field, make_dataclass

        fields: list[tuple[str, Any, Field[Any]]] = []
        for name, annotation in kind.record_fields.items():
            default = kind.record_defaults.get(name, field)
            if isinstance(default, _Made):
                about = field(default_factory=default.make)
            else:
                about = field() if default is field else field(default=default)
            fields.append((name, annotation, about))
        like: Any = make_dataclass(kind.__name__, fields, kw_only=True)
        kind.__dataclass_fields__ = like.__dataclass_fields__
        return kind.__dataclass_fields__


@dataclass_transform(frozen_default=True)
class Record:
    """The base of records; a subclass may have ``__post_init__``, to check what it was given.

    ``kw_only``: its fields are given by name alone. With ``frozen=False`` they may change, and it
    has no hash.

    Raises: TypeError, for fields that it has not, and those without a default that are missing.
    """

    record_fields: ClassVar[dict[str, str]] = {}  # name -> annotation, a base's first
    record_defaults: ClassVar[dict[str, Any]] = {}
    _positional: ClassVar[bool] = True
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, *, kw_only: bool = False, frozen: bool = True) -> None:
        # Python 3.10 and later give a class its own annotations by this attribute, and a dict when
        # it has none.  inspect.get_annotations returns the same, but to import inspect takes 10 ms
        # or more of each start, as does annotationlib (3.14).
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
            # Ignored below: mypy takes no assignment to a method, and None for no __hash__.
            cls.__setattr__ = object.__setattr__  # type: ignore[method-assign, assignment]
            cls.__delattr__ = object.__delattr__  # type: ignore[method-assign]
            cls.__hash__ = None  # type: ignore[method-assign, assignment]

    def __init__(self, *in_order: Any, **values: Any) -> None:
        kind = type(self)
        names = list(kind.record_fields) if kind._positional else []
        if len(in_order) > len(names):
            raise TypeError(f"{kind.__name__} takes {len(names)} values without a name")
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
            raise TypeError(f"{kind.__name__} has no {', '.join(values)}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check a new record; a subclass raises an error here."""

    def replace(self, **changes: Any) -> Self:
        """Return a record with other values in those fields; it is checked like a new one.

        Raises: TypeError, for a name that is no field.
        """
        return type(self)(**{name: getattr(self, name) for name in self.record_fields} | changes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} does not change: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} does not change: {name}")

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
