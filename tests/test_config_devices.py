"""The configurations of devices."""

from __future__ import annotations

import pytest

from pyvmm.config import Balloon, Hotplug
from pyvmm.errors import UsageError
from pyvmm.layout import GIB, KIB, MIB


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (2 * MIB, 2 * MIB),
        (768 * MIB, 2 * MIB),
        (2 * GIB, 2 * MIB),
        (3 * GIB, 4 * MIB),
        (64 * GIB, 64 * MIB),
        (1 << 40, GIB),
        (8 << 40, GIB),
    ],
)
def test_hotplug_blocks_are_small_and_at_most_1024(size: int, block: int) -> None:
    assert Hotplug(size=size).block == block
    assert Hotplug(size=size).window_size() == size


@pytest.mark.parametrize(
    ("size", "block", "words"),
    [
        (0, None, "0 bytes: not a multiple of its blocks"),
        (MIB, None, "1 MiB: not a multiple of its blocks of 2 MiB"),
        (5 * MIB, None, "5 MiB: not a multiple of its blocks"),
        (-2 * MIB, None, "not a multiple of its blocks"),
        (64 * MIB, MIB, "blocks of 1 MiB: their size is a power of two from 2 MiB to 1 GiB"),
        (64 * MIB, 6 * MIB, "blocks of 6 MiB"),
        (64 * MIB, 0, "blocks of 0 bytes"),
        (64 * GIB, 2 * GIB, "blocks of 2 GiB"),
        (64 * MIB, 128 * MIB, "64 MiB: not a multiple of its blocks of 128 MiB"),
        (64 * MIB + 4 * KIB, 2 * MIB, "not a multiple of its blocks"),
    ],
)
def test_hotplug_refuses_an_impossible_size(size: int, block: int | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Hotplug(size=size, block_size=block)

    assert words in caught.value.message
    assert caught.value.message.startswith("`devices.hotplug`")


def test_devices_are_named_by_field_and_value() -> None:
    assert str(Balloon()) == "`devices.balloon`"
    assert str(Hotplug(size=768 * MIB)) == "`devices.hotplug`=768 MiB"
    assert str(Hotplug(size=GIB, block_size=4 * MIB)) == "`devices.hotplug`=1 GiB,block=4M"
