"""Memory tags in a snapshot: their packing, their areas, and a guest that checks them."""

from __future__ import annotations

import random

import pytest

from pyvmm.errors import UsageError
from pyvmm.machine.plan import Feature
from pyvmm.snapshot import tags
from pyvmm.snapshot.state import TAGS_BASE, Area, State
from tests.snapshot import sample

MTE = frozenset({Feature.MTE})


def test_pack_and_unpack_are_inverse() -> None:
    random.seed(7)
    given = bytearray(random.choices(range(16), k=4096))

    packed = tags.pack(given)

    assert len(packed) == 2048
    assert packed[0] == given[0] | given[1] << 4
    assert tags.unpack(packed) == given


def with_tags(*areas: Area, features: frozenset[Feature] = MTE) -> State:
    """Return a state with those areas of tags."""
    found = sample.state()
    return found.replace(features=found.features | features, memory=(*found.memory, *areas))


def right() -> Area:
    """Return the area of the tags of the sample's RAM."""
    (ram,) = (area for area in sample.state().memory if area.name == "ram")
    return Area(name="ram-tags", base=TAGS_BASE + ram.base // 32, size=ram.size // 32)


def test_state_of_a_guest_with_tags_has_their_area() -> None:
    state = with_tags(right(), sample.GENERATION_ID)  # which has no tags

    assert State.of(state.document(), "x").memory == state.memory


@pytest.mark.parametrize(
    "state",
    [
        with_tags(),
        with_tags(right(), features=frozenset()),
        with_tags(right().replace(base=right().base + 4096)),
        with_tags(right().replace(size=4096)),
        with_tags(right().replace(name="rom-tags")),
    ],
    ids=["none", "no MTE", "elsewhere", "too small", "of other memory"],
)
def test_state_with_other_areas_of_tags_is_damaged(state: State) -> None:
    with pytest.raises(UsageError, match="areas of memory tags differ"):
        State.of(state.document(), "x")
