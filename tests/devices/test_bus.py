from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.bus import Bus
from pyvmm.layout import Region


class Recorder:
    """Answers reads with its own number, and keeps what was asked of it."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.seen: list[tuple[int, ...]] = []

    def mmio_read(self, offset: int, length: int) -> int:
        self.seen.append((offset, length))
        return self.number

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        self.seen.append((offset, length, value))


def test_read_reaches_the_device_with_an_offset() -> None:
    bus, device = Bus(), Recorder(7)
    bus.add(Region("it", 0x1000, 0x100), device)

    value = bus.read(0x1004, 4)

    assert value == 7
    assert device.seen == [(4, 4)]


def test_write_reaches_the_device_with_an_offset() -> None:
    bus, device = Bus(), Recorder()
    bus.add(Region("it", 0x1000, 0x100), device)

    bus.write(0x10FF, 1, 0xAB)

    assert device.seen == [(0xFF, 1, 0xAB)]


def test_unclaimed_access_reads_zero_and_reaches_nobody() -> None:
    bus, device = Bus(), Recorder()
    bus.add(Region("it", 0x1000, 0x100), device)

    value = bus.read(0x0FFF, 1)
    bus.write(0x1100, 4, 1)
    bus.write(0x9000, 4, 1)

    assert value == 0
    assert device.seen == []


@pytest.mark.parametrize(
    ("base", "size"), [(0x1000, 0x100), (0x0F01, 0x100), (0x10FF, 1), (0x0, 0x9000)]
)
def test_overlapping_region_is_refused_with_both_names(base: int, size: int) -> None:
    bus = Bus()
    bus.add(Region("first", 0x1000, 0x100), Recorder())

    with pytest.raises(ValueError, match=r"second .* overlaps first"):
        bus.add(Region("second", base, size), Recorder())


def test_empty_region_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Bus().add(Region("nothing", 0x1000, 0), Recorder())


def test_devices_are_listed_by_address() -> None:
    bus = Bus()
    for base in (0x3000, 0x1000, 0x2000):
        bus.add(Region(hex(base), base, 0x10), Recorder())

    assert [region.base for region, _ in bus] == [0x1000, 0x2000, 0x3000]


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30)), max_size=12),
    st.lists(st.integers(0, 240)),
)
def test_every_address_finds_the_one_device_that_covers_it(
    wanted: list[tuple[int, int]], addresses: list[int]
) -> None:
    bus = Bus()
    owner: dict[int, int] = {}
    for number, (base, size) in enumerate(wanted, 1):
        covered = range(base, base + size)
        try:
            bus.add(Region(str(number), base, size), Recorder(number))
        except ValueError:
            assert any(address in owner for address in covered)
        else:
            assert not any(address in owner for address in covered)
            owner |= dict.fromkeys(covered, number)

    assert [bus.read(address, 1) for address in addresses] == [
        owner.get(address, 0) for address in addresses
    ]
