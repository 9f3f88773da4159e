"""The memory tags (MTE) of a guest, in a snapshot.

The tags of RAM are stored like memory, in an area of their own: `ram-tags`.  A byte holds the tags
of two granules of 16 bytes, the lower granule in bits 3 to 0.  The tags of the granules at guest
address A are at BASE + A / 32, which no guest can address.  So the file, its hashes, incremental
snapshots and comparisons treat them as they treat memory.

Source: Linux, Documentation/virt/kvm/api.rst, KVM_ARM_MTE_COPY_TAGS.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Final

from pyvmm.kvm.vm import TAG_GRANULE, Vm
from pyvmm.machine.board import Board
from pyvmm.machine.plan import Feature
from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range, merged
from pyvmm.snapshot.pages import touched, used
from pyvmm.snapshot.state import TAGS, TAGS_BASE, TAGS_SHARE, has_tags

AT_ONCE: Final = 1 << 20  # bytes of memory whose tags are copied at once
_LOW: Final = bytes(value & 0xF for value in range(256))
_HIGH: Final = bytes(value >> 4 for value in range(256))
_UP: Final = bytes(value << 4 & 0xF0 for value in range(256))


def tag_memories(board: Board, undo: ExitStack) -> dict[str, GuestMemory]:
    """Return new memory for the tags of each memory of a machine, by the area's name.

    It is empty for a machine without tags.
    """
    if Feature.MTE not in board.plan.features:
        return {}
    return {
        name + TAGS: undo.enter_context(
            GuestMemory(TAGS_BASE + memory.base // TAGS_SHARE, memory.size // TAGS_SHARE)
        )
        for name, memory in board.slots.saved.items()
        if has_tags(name)
    }


def read_tags(board: Board, memories: Mapping[str, GuestMemory]) -> None:
    """Read the guest's tags into the memories for tags; no vCPU runs.

    Raises: KvmError.
    """
    for name, memory in board.slots.saved.items():
        if name + TAGS in memories:
            for gpa, length in _pieces(touched(memory)):
                tags = board.vm.read_tags(gpa, length)
                if any(tags):
                    memories[name + TAGS].write(_place(gpa), pack(tags))


def write_tags(vm: Vm, memories: Mapping[str, GuestMemory]) -> None:
    """Write the tags in the memories for tags to the guest, whose own memory is restored already.

    Pages without a tag keep that of new memory, 0.  Raises: KvmError.
    """
    for memory in memories.values():
        whole = [(memory.base, memory.end)]
        per_page = mmap.PAGESIZE // TAGS_SHARE
        for low, high in used(memory, whole):
            first, last = low // per_page * per_page, -(-high // per_page) * per_page
            start = (first - TAGS_BASE) * TAGS_SHARE
            for gpa, length in _pieces([(start, start + (last - first) * TAGS_SHARE)]):
                with memory.view(_place(gpa), length // TAGS_SHARE) as packed:
                    vm.write_tags(gpa, length, unpack(packed))


def pack(tags: bytearray) -> bytes:
    """Return two tags in each byte, the first in the lower half."""
    low = int.from_bytes(tags[0::2], "little")
    high = int.from_bytes(tags[1::2].translate(_UP), "little")
    return (low | high).to_bytes(len(tags) // 2, "little")


def unpack(packed: bytes | memoryview) -> bytearray:
    """Return a byte for each tag."""
    data = bytes(packed)
    tags = bytearray(2 * len(data))
    tags[0::2] = data.translate(_LOW)
    tags[1::2] = data.translate(_HIGH)
    return tags


def _place(gpa: int) -> int:
    return TAGS_BASE + gpa // TAGS_SHARE


def _pieces(ranges: list[Range]) -> Iterator[tuple[int, int]]:
    """Yield pieces of whole host pages within ``ranges``, as address and length."""
    page = mmap.PAGESIZE
    whole = merged((low // page * page, -(-high // page) * page) for low, high in ranges)
    for low, high in whole:
        for start in range(low, high, AT_ONCE):
            yield start, min(AT_ONCE, high - start)


assert TAGS_SHARE == 2 * TAG_GRANULE
