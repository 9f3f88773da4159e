from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.bus import UNCLAIMED, Bus
from pyvmm.layout import Region


class Numbered:
    """A device whose reads return its own number."""

    def __init__(self, number: int = 1) -> None:
        self.number = number

    def mmio_read(self, offset: int, length: int) -> int:
        return self.number

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        raise AssertionError("no test writes")


@pytest.mark.parametrize("address", [0x1000, 0x1004, 0x10FF])
def test_find_returns_the_region_and_its_device(address: int) -> None:
    bus, region, device = Bus(), Region("it", 0x1000, 0x100), Numbered()
    bus.add(region, device)

    assert bus.find(address) == (region, device)


@pytest.mark.parametrize("address", [0x0FFF, 0x1100, 0x9000])
def test_unclaimed_address_reads_zero_and_ignores_writes(address: int) -> None:
    bus = Bus()
    bus.add(Region("it", 0x1000, 0x100), Numbered())

    region, device = bus.find(address)
    device.mmio_write(0, 4, 1)

    assert region is UNCLAIMED
    assert device.mmio_read(0, 4) == 0


@pytest.mark.parametrize(
    ("base", "size"), [(0x1000, 0x100), (0x0F01, 0x100), (0x10FF, 1), (0x0, 0x9000)]
)
def test_overlapping_region_is_refused_with_both_names(base: int, size: int) -> None:
    bus = Bus()
    bus.add(Region("first", 0x1000, 0x100), Numbered())

    with pytest.raises(ValueError, match=r"second .* overlaps first"):
        bus.add(Region("second", base, size), Numbered())


def test_empty_region_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Bus().add(Region("nothing", 0x1000, 0), Numbered())


def test_devices_are_listed_by_address() -> None:
    bus = Bus()
    for base in (0x3000, 0x1000, 0x2000):
        bus.add(Region(hex(base), base, 0x10), Numbered())

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
            bus.add(Region(str(number), base, size), Numbered(number))
        except ValueError:
            assert any(address in owner for address in covered)
        else:
            assert not any(address in owner for address in covered)
            owner |= dict.fromkeys(covered, number)

    assert [bus.find(address)[1].mmio_read(0, 1) for address in addresses] == [
        owner.get(address, 0) for address in addresses
    ]
