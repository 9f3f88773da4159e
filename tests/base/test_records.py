from __future__ import annotations

import dataclasses
import pickle
from typing import ClassVar

import pytest

from pyvmm.base.records import Record, made

NUMBERS = iter(range(100))


class Base(Record):
    kind: ClassVar[str] = "none"

    name: str
    size: int = 4


class Derived(Base):
    kind: ClassVar[str] = "some"

    order: int = made(lambda: next(NUMBERS))


class Apart(Record, kw_only=True):
    name: str


class Changing(Record, frozen=False):
    name: str


class Checked(Record):
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"{self.size} is no size")


def test_fields_are_given_in_order_or_by_name() -> None:
    assert Base("a", 5) == Base(size=5, name="a")


def test_missing_field_gets_its_default() -> None:
    assert Base("a").size == 4


def test_made_default_is_new_for_each_record() -> None:
    first, second = Derived("a"), Derived("a")

    assert second.order == first.order + 1


def test_base_s_fields_come_first() -> None:
    record = Derived("a", 1, 2)

    assert (record.name, record.size, record.order) == ("a", 1, 2)


def test_class_variable_is_not_a_field() -> None:
    assert (Base("a").kind, Derived("a").kind) == ("none", "some")
    with pytest.raises(TypeError, match="Base has no field kind"):
        Base("a", kind="x")  # type: ignore[call-arg]  # refused here too


def test_missing_field_is_refused() -> None:
    with pytest.raises(TypeError, match="Base: name is missing"):
        Base(size=1)  # type: ignore[call-arg]  # refused here too


def test_field_given_twice_is_refused() -> None:
    with pytest.raises(TypeError, match="Base: name is given twice"):
        Base("a", name="b")  # type: ignore[misc]  # refused here too


def test_too_many_values_are_refused() -> None:
    with pytest.raises(TypeError, match="Base takes 2 positional values"):
        Base("a", 1, 2)  # type: ignore[call-arg]  # refused here too


def test_kw_only_fields_are_refused_by_position() -> None:
    assert Apart(name="a").name == "a"
    with pytest.raises(TypeError, match="Apart takes 0 positional values"):
        Apart("a")  # type: ignore[call-arg]  # refused here too


def test_frozen_record_cannot_be_changed() -> None:
    record = Base("a")

    with pytest.raises(AttributeError, match="Base is frozen: size cannot be changed"):
        record.size = 5  # type: ignore[misc]  # refused here too
    with pytest.raises(AttributeError, match="Base is frozen: size cannot be changed"):
        del record.size
    assert record.size == 4


def test_unfrozen_record_can_be_changed() -> None:
    record = Changing("a")

    record.name = "b"

    assert record == Changing("b")
    with pytest.raises(TypeError, match="unhashable"):
        hash(record)


def test_post_init_refuses_an_invalid_record() -> None:
    with pytest.raises(ValueError, match="-1 is no size"):
        Checked(-1)


def test_equal_records_have_one_class_and_one_hash() -> None:
    assert Base("a", 1) != Base("a", 2)
    assert Base("a", 1) != Derived("a", 1, 0)
    assert len({Base("a", 1), Base("a", 1)}) == 1


def test_representation_makes_the_record_again() -> None:
    assert eval(repr(Base("a", 5))) == Base("a", 5)


def test_dataclasses_takes_records() -> None:
    record = Derived("a", 1, 2)

    assert [field.name for field in dataclasses.fields(Base)] == ["name", "size"]
    assert [field.name for field in dataclasses.fields(Derived)] == ["name", "size", "order"]
    assert dataclasses.replace(record, size=7) == Derived("a", 7, 2)
    assert dataclasses.asdict(record) == {"name": "a", "size": 1, "order": 2}
    assert dataclasses.is_dataclass(record)


def test_dataclasses_knows_the_defaults() -> None:
    name, size, order = dataclasses.fields(Derived)

    assert (name.default, size.default) == (dataclasses.MISSING, 4)
    assert order.default_factory is not dataclasses.MISSING


def test_record_can_be_pickled() -> None:
    record = Derived("a", 1, 2)

    assert pickle.loads(pickle.dumps(record)) == record


def test_replace_keeps_the_other_fields() -> None:
    assert Base("a", 5).replace(name="b") == Base("b", 5)


def test_replace_checks_the_new_record() -> None:
    with pytest.raises(ValueError, match="-1 is no size"):
        Checked(1).replace(size=-1)


def test_replace_refuses_an_unknown_field() -> None:
    with pytest.raises(TypeError, match="Base has no field color"):
        Base("a").replace(color="red")


def test_replace_works_on_kw_only_fields() -> None:
    assert Apart(name="a").replace(name="b") == Apart(name="b")
