"""Plugged blocks as memory slots of a fake kernel; test_virtio_memory.py has a real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from pyvmm.errors import HostError, KvmError
from pyvmm.layout import MIB
from pyvmm.machine.slots import MemorySlots, PluggedSlots
from pyvmm.memory.map import PluggableMemory

BASE = 0x1_0000_0000
BLOCK = 2 * MIB


class Slots:
    """A VM that has only memory slots."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.regions: dict[int, tuple[int, int, int]] = {}

    def check_extension(self, cap: int) -> int:
        return self.most

    def set_user_memory_region(
        self, slot: int, base: int, size: int, host_address: int, flags: int = 0
    ) -> None:
        if not size:
            del self.regions[slot]
            return
        if slot >= self.most:
            raise KvmError("KVM_SET_USER_MEMORY_REGION", "", 22)
        assert slot not in self.regions
        assert all(base + size <= b or b + s <= base for b, s, _ in self.regions.values())
        self.regions[slot] = (base, size, host_address)


@pytest.fixture
def blocks() -> Iterator[PluggableMemory]:
    with PluggableMemory(BASE, 8 * BLOCK, BLOCK) as memory:
        yield memory


def shown(vm: Slots) -> list[int]:
    return sorted((base - BASE) // BLOCK for base, _, _ in vm.regions.values() if base >= BASE)


def make(vm: Slots, blocks: PluggableMemory) -> PluggedSlots:
    slots = MemorySlots(cast("Any", vm))
    slots.add("ram", 0x8000_0000, 64 * MIB, 0x7000_0000_0000)
    return PluggedSlots(blocks, slots)


def test_each_block_is_a_slot_of_its_own_memory(blocks: PluggableMemory) -> None:
    vm = Slots()

    make(vm, blocks).show(2, 3, True)

    assert shown(vm) == [2, 3, 4]
    for base, size, host_address in vm.regions.values():
        if base >= BASE:
            assert size == BLOCK
            assert host_address - blocks.backing.host_address == base - BASE


def test_slot_numbers_are_reused(blocks: PluggableMemory) -> None:
    vm = Slots(most=9)  # the RAM's, and one for each block
    plugged = make(vm, blocks)

    for _ in range(3):
        plugged.show(0, 8, True)
        assert shown(vm) == list(range(8))
        plugged.show(0, 8, False)
        assert shown(vm) == []


def test_blocks_are_shown_all_or_none_when_the_kernel_lacks_memory(blocks: PluggableMemory) -> None:
    vm = Slots(most=9)
    plugged = make(vm, blocks)
    plugged.show(7, 1, True)
    vm.most = 4

    with pytest.raises(HostError, match="KVM_SET_USER_MEMORY_REGION"):
        plugged.show(0, 4, True)

    assert shown(vm) == [7]
    vm.most = 9
    plugged.show(0, 4, True)
    assert shown(vm) == [0, 1, 2, 3, 7]


def test_more_blocks_than_slots_are_refused(blocks: PluggableMemory) -> None:
    with pytest.raises(HostError, match=r"8 blocks take a memory slot each.* has 7 more") as caught:
        make(Slots(most=8), blocks)

    assert "block=SIZE" in (caught.value.hint or "")
