"""The state document: it is complete, and damage is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.config import Config
from pyvmm.errors import UsageError
from pyvmm.kvm import regs
from pyvmm.snapshot.codec import Damaged
from pyvmm.snapshot.restorestate import plan_of
from pyvmm.snapshot.state import SCHEMA, State
from tests.snapshot import sample


def through_json(state: State) -> Any:
    return json.loads(json.dumps(state.document()))


def test_state_is_equal_after_json() -> None:
    state = sample.state()

    assert State.of(through_json(state), "x") == state


@pytest.mark.parametrize("config", sample.configs(), ids=lambda config: config.name)
def test_config_is_equal_after_json(config: Config) -> None:
    state = sample.state().replace(config=config)

    assert State.of(through_json(state), "x").config == config


def test_registers_are_written_with_all_digits() -> None:
    document = through_json(sample.state())

    registers = document["vcpus"][0]["registers"]

    assert registers[f"{regs.Z(3):#018x}"] == "0x" + "00" * 224 + "04" * 32
    assert registers[f"{regs.FPCR:#018x}"] == "0x03000000"


def numbered(count: int, size: int) -> dict[str, str]:
    """Return made-up register ids of that size."""
    return {f"{0x6000_0000_00FF_0000 | size << 52 | n << 32:#x}": "0x0" for n in range(count)}


@pytest.mark.parametrize(
    ("registers", "fits"),
    [
        (numbered(8192, 3), True),
        (numbered(8193, 3), False),
        (numbered(1, 8), True),  # 256 bytes, the size of a Z register
        (numbered(1, 9), False),
        (numbered(1, 15), False),
    ],
)
def test_state_refuses_too_many_or_too_wide_registers(
    registers: dict[str, str], fits: bool
) -> None:
    document = through_json(sample.state())
    document["vcpus"][0]["registers"] = registers

    if fits:
        assert len(State.of(document, "x").vcpus[0].registers) == len(registers)
    else:
        with pytest.raises(UsageError, match=r"x: its state is damaged: .*vcpus\[0\].registers"):
            State.of(document, "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"warnings": [""] * 101}, "state.warnings: more than 100"),
        ({"devices": {str(n): {} for n in range(101)}}, "state.devices: more than 100"),
    ],
)
def test_state_refuses_longer_lists_than_a_save_writes(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Damaged, match=words):
        State.of(sample.state().document() | change, "x")


@pytest.mark.parametrize("key", ["\x1b[31m", "a\nb", "\ud800"])
def test_damage_names_a_field_on_one_printable_line(key: str) -> None:
    with pytest.raises(Damaged) as caught:
        State.of(sample.state().document() | {key: 1}, "x")

    assert caught.value.message.isprintable()


def test_state_of_a_newer_schema_is_refused() -> None:
    document = through_json(sample.state()) | {"schema": SCHEMA + 1}

    with pytest.raises(UsageError, match=f"schema {SCHEMA + 1}, this pyvmm reads up to {SCHEMA}"):
        State.of(document, "x")


def older(schema: int) -> Any:
    """Return the sample as a pyvmm with that schema wrote it."""
    document = through_json(sample.state()) | {"schema": schema}
    del document["config"]["vmgenid"]
    if schema == 1:
        del document["config"]["cpu"]["pauth"], document["config"]["cpu"]["ids"]
    return document


@pytest.mark.parametrize("schema", [1, 2])
def test_state_of_an_older_schema_is_a_machine_without_a_generation_id(schema: int) -> None:
    state = State.of(older(schema), "x")

    assert state == sample.state().replace(schema=schema)
    assert not plan_of(state).vmgenid


def test_area_of_the_generation_id_is_one_of_the_machine() -> None:
    state = sample.state()
    state = state.replace(memory=(*state.memory, sample.GENERATION_ID))

    assert plan_of(State.of(through_json(state), "x")).vmgenid


def test_missing_field_of_an_older_document_takes_its_default() -> None:
    document = through_json(sample.state())
    del document["config"]["hugetlbfs"], document["warnings"]

    assert State.of(document, "x") == sample.state()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("vcpus",), [], "the ids are not 0, 1, 2"),
        (("vcpus", 0, "id"), 1, "the ids are not 0, 1, 2"),
        (("vcpus", 1, "vls"), [128], "the vector lengths differ"),
        (("vcpus", 0, "mp_state"), "RUNNING", "not one of RUNNABLE"),
        (("vcpus", 0, "registers"), {"0x6030000000100000": "0x1" + "0" * 16}, "malformed"),
        (("vcpus", 0, "registers"), {"0x1" + "0" * 16: "0x0"}, "malformed"),
        (("vcpus", 0, "registers"), ["0x0"], "malformed"),
        (("memory", 0, "size"), 0, "outside the guest's addresses"),
        (("memory", 0, "size"), 1 << 40, "outside the guest's addresses"),
        (("memory", 0, "size"), True, "not int"),
        (("memory", 1, "base"), "0x80000000", "overlap"),
        (("memory", 1, "name"), "ram", "two areas with the same name"),
        (("ipa_bits",), 4096, "outside the guest's addresses"),
        (("clock", "hz"), 0, "the clock's values are out of range"),
        (("config", "vcpus"), 0, "needs at least 1 vCPU"),
        (("config", "name"), "../x", "not a name for a VM"),
        (("config", "colour"), "red", "no such field"),
        (("gic", "blocks", 1, "vcpu"), 7, "vCPU 7, which does not exist"),
        (("taken",), None, "not an object"),
        (("taken", "midr"), "0x" + "f" * 5000, "malformed"),
    ],
)
def test_damaged_state_is_refused_with_the_field(
    path: tuple[Any, ...], value: Any, words: str
) -> None:
    document = through_json(sample.state())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value

    with pytest.raises(UsageError, match=words):
        State.of(document, "some.snap")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_state_with_any_value_in_a_field_is_read_or_refused(data: st.DataObject) -> None:
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    while True:
        steps = list(place) if isinstance(place, dict) else list(range(len(place)))
        step = data.draw(st.sampled_from(steps))
        if not isinstance(place[step], dict | list) or not place[step] or data.draw(st.booleans()):
            break
        place = place[step]
    place[step] = data.draw(JSON)

    try:
        State.of(document, "x")
    except UsageError as error:
        assert "x: " in error.message


DOCUMENT = through_json(sample.state())
