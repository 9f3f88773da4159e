"""The differences between two snapshots: registers by name and lane, devices, memory and its tags.

Even two saves of one stopped machine differ in some parts, such as counters and the time of the
save.  Such a difference is listed with the reason why it is expected.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from operator import ne
from typing import Any, Final, NamedTuple

from pyvmm.arm64 import sysregs
from pyvmm.arm64.bits import Bits
from pyvmm.arm64.fields import decode
from pyvmm.arm64.lanes import Predicate, Vector
from pyvmm.base.records import Record
from pyvmm.kvm import regs
from pyvmm.kvm.vm import TAG_GRANULE
from pyvmm.memory.ranges import Range, clipped, merged, runs
from pyvmm.snapshot import gic, pages, restoreorder
from pyvmm.snapshot.codec import encode
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import Placed, SnapshotFile
from pyvmm.snapshot.snapshot import Snapshot, SnapshotVcpu
from pyvmm.snapshot.state import RENEWED, TAGS_BASE, TAGS_SHARE
from pyvmm.snapshot.tags import unpack

# Parts of the state that differ between two saves of one machine, and the reason.
EXPECTED: Final = {
    "taken": "place and time of the save",
    "clock": "the guest's clock keeps counting",
    "config.name": "the name of the VM",
    "warnings": "warnings of the save",
}
TICKS: Final = "counters keep counting"
RECOMPUTED: Final = "bits that KVM recomputes"
PER_PAGE: Final = PAGE // TAG_GRANULE  # tags
FIRST_TAGS: Final = 4  # granules that a TagChange lists


class Detail(NamedTuple):
    """A field or a lane of a register that differs."""

    name: str
    a: str
    b: str


class Change(Record, kw_only=True):
    """A difference; a side without the value is None.

    ``expected`` is the reason why the difference is expected, or empty.
    """

    where: str  # "vCPU 0", "GIC dist", "uart0", "machine"
    name: str
    a: str | None
    b: str | None
    details: tuple[Detail, ...] = ()
    expected: str = ""


class MemoryChange(Record):
    """A range of guest memory that differs, in whole pages."""

    start: int
    end: int
    expected: str = ""


class TagChange(Record):
    """A range of guest memory, in whole pages, whose memory tags (MTE) differ.

    ``granules`` is the number of granules with another tag; ``first`` are the first of them.
    """

    start: int
    end: int
    granules: int
    first: tuple[Detail, ...]


class Comparison(Record):
    """All differences between two snapshots."""

    changes: tuple[Change, ...]
    memory: tuple[MemoryChange, ...]
    tags: tuple[TagChange, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there is any difference."""
        return bool(self.changes or self.memory or self.tags)

    @property
    def differ(self) -> bool:
        """Whether there is an unexpected difference."""
        everything: list[Change | MemoryChange] = [*self.changes, *self.memory]
        return bool(self.tags) or not all(change.expected for change in everything)


def compare(a: Snapshot, b: Snapshot) -> Comparison:
    """Return all differences between two snapshots.

    Raises: UsageError, if memory that must be read is damaged.
    """
    changes = [*_machine(a, b), *_vcpus(a, b), *_gic(a, b), *_devices(a, b)]
    ranges = differing_memory(a.file, b.file)
    memory = clipped(ranges, 0, TAGS_BASE)
    tags = clipped(ranges, TAGS_BASE, 1 << 64)
    return Comparison(tuple(changes), tuple(_memory(a, b, memory)), tuple(_tags(a, b, tags)))


# The machine, the devices: documents


def _machine(a: Snapshot, b: Snapshot) -> Iterator[Change]:
    left, right = a.state.document(), b.state.document()
    for part in ("vcpus", "gic", "devices"):
        del left[part], right[part]
    yield from _documents("machine", left, right)


def _devices(a: Snapshot, b: Snapshot) -> Iterator[Change]:
    left, right = a.state.devices, b.state.devices
    for name in _either(left, right):
        yield from _documents(name, left.get(name), right.get(name))


def _documents(where: str, a: Any, b: Any, path: str = "") -> Iterator[Change]:
    """Yield the leaves of two JSON values that differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in _either(a, b):
            yield from _documents(where, a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _documents(where, left, right, f"{path}[{number}]")
    elif a != b or type(a) is not type(b):
        expected = [reason for prefix, reason in EXPECTED.items() if _is_in(path, prefix)]
        yield Change(
            where=where,
            name=path or "everything",
            a=_text(a),
            b=_text(b),
            expected=expected[0] if expected and where == "machine" else "",
        )


def _is_in(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _either(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> list[Any]:
    """Return the keys of both, in order."""
    return list(dict.fromkeys([*a, *b]))


# vCPUs and GIC: registers


def _vcpus(a: Snapshot, b: Snapshot) -> Iterator[Change]:
    for number in range(max(len(a.vcpus), len(b.vcpus))):
        where = f"vCPU {number}"
        left, right = (s.vcpus[number] if number < len(s.vcpus) else None for s in (a, b))
        if left is None or right is None:
            a_has, b_has = (None if vcpu is None else "present" for vcpu in (left, right))
            yield Change(where=where, name="vCPU", a=a_has, b=b_has)
            continue
        yield from _documents(where, _without_registers(left), _without_registers(right))
        for reg_id in _either(left.state.registers, right.state.registers):
            yield from _register(where, reg_id, left, right)


def _without_registers(vcpu: SnapshotVcpu) -> dict[str, Any]:
    """Return a vCPU's state without its registers."""
    return {name: value for name, value in encode(vcpu.state).items() if name != "registers"}


def _register(where: str, reg_id: int, left: SnapshotVcpu, right: SnapshotVcpu) -> Iterator[Change]:
    a, b = (vcpu.state.registers.get(reg_id) for vcpu in (left, right))
    if a == b:
        return
    expected = ""
    if a is not None and b is not None and not restoreorder.differs(reg_id, a, b):
        expected = TICKS if restoreorder.class_of(reg_id).ticks else RECOMPUTED
    bits = _bits(reg_id, max((*left.state.vls, *right.state.vls), default=0))
    yield Change(
        where=where,
        name=restoreorder.name(reg_id),
        a=None if a is None else f"{a:#0{2 + bits // 4}x}",
        b=None if b is None else f"{b:#0{2 + bits // 4}x}",
        details=() if a is None or b is None else tuple(_details(reg_id, a, b, bits)),
        expected=expected,
    )


def _bits(reg_id: int, longest: int) -> int:
    """Return a register's width in bits in a vCPU with that longest vector length."""
    if reg_id in regs.Z_REGISTERS:
        return longest
    return longest // Predicate.SHARE if reg_id in regs.P_REGISTERS else 8 * regs.size(reg_id)


def _details(reg_id: int, a: int, b: int, bits: int) -> Iterator[Detail]:
    """Yield the lanes or fields that differ; a predicate has one bit for each byte lane."""
    if reg_id in regs.Z_REGISTERS or reg_id in regs.V_REGISTERS:
        lanes = zip(Vector(a, bits).d, Vector(b, bits).d, strict=True)
        for number, (left, right) in enumerate(lanes):
            if left != right:
                yield Detail(f"d[{number}]", f"{left:#018x}", f"{right:#018x}")
    elif reg_id in regs.P_REGISTERS:
        for number in range(bits):
            if (a ^ b) >> number & 1:
                yield Detail(f"b[{number}]", str(a >> number & 1), str(b >> number & 1))
    else:
        yield from _fields(restoreorder.name(reg_id), a, b)


def _fields(name: str, a: int, b: int) -> Iterator[Detail]:
    left, right = decode(name, a), decode(name, b)
    if not isinstance(left, Bits) or type(left) is not type(right):
        return
    for field in left.fields():
        if (a ^ b) & field.mask:
            yield Detail(field.name, field.word(a), field.word(b))


def _gic(a: Snapshot, b: Snapshot) -> Iterator[Change]:
    left, right = (
        {(part.part, part.vcpu): part.registers for part in s.gic_parts()} for s in (a, b)
    )
    if a.state.gic.kind != b.state.gic.kind:
        yield Change(where="GIC", name="kind", a=a.state.gic.kind, b=b.state.gic.kind)
    for part, vcpu in _either(left, right):
        mine, theirs = left.get((part, vcpu), {}), right.get((part, vcpu), {})
        where = f"GIC {part}" if vcpu is None else f"GIC {part} of vCPU {vcpu}"
        for name in _either(mine, theirs):
            one, other = mine.get(name), theirs.get(name)
            if one == other:
                continue
            both = one is not None and other is not None
            rounded = both and not ((one or 0) ^ (other or 0)) & ~gic.ROUNDED.get(name, 0)
            yield Change(
                where=where,
                name=name,
                a=None if one is None else f"{one:#010x}",
                b=None if other is None else f"{other:#010x}",
                details=tuple(_fields(name, one or 0, other or 0))
                if both and name in sysregs.ENCODINGS
                else (),
                expected=RECOMPUTED if rounded else "",
            )


# Memory


def _memory(a: Snapshot, b: Snapshot, ranges: Iterable[Range]) -> Iterator[MemoryChange]:
    renewed = [area for s in (a, b) for area in s.state.memory if area.name in RENEWED]
    for low, high in ranges:
        names = [area.name for area in renewed if area.base <= low and high <= area.end]
        yield MemoryChange(low, high, RENEWED[names[0]] if names else "")


def _tags(a: Snapshot, b: Snapshot, ranges: Iterable[Range]) -> Iterator[TagChange]:
    """Yield the memory whose tags differ; ``ranges`` are those of the areas of tags."""
    for low, high in ranges:
        for start in range(low, high, BLOCK):
            length = min(BLOCK, high - start)
            left, right = (unpack(s.file.read(start, length)) for s in (a, b))
            flags = bytes(map(ne, left, right))
            base = (start - TAGS_BASE) * TAGS_SHARE
            pages = (any(flags[at : at + PER_PAGE]) for at in range(0, len(flags), PER_PAGE))
            for first, last in runs(bytes(pages), base, PAGE):
                at = (first - base) // TAG_GRANULE
                end = (last - base) // TAG_GRANULE
                different = (n for n in range(at, end) if flags[n])
                yield TagChange(
                    first,
                    last,
                    sum(flags[at:end]),
                    tuple(
                        Detail(f"{base + n * TAG_GRANULE:#x}", f"{left[n]:x}", f"{right[n]:x}")
                        for n in islice(different, FIRST_TAGS)
                    ),
                )


def differing_memory(a: SnapshotFile, b: SnapshotFile) -> list[Range]:
    """Return the ranges of guest pages that differ between two files.

    Blocks are not read if they have the same SHA-256, or if both files use the same stored block.
    """
    found: list[Range] = []
    left, right = _by_block(a), _by_block(b)
    for block in sorted(left.keys() | right.keys()):
        mine, theirs = left.get(block, []), right.get(block, [])
        if _identity(mine) != _identity(theirs):
            with memoryview(a.read(block, BLOCK)) as one, memoryview(b.read(block, BLOCK)) as other:
                found += runs(pages.differing(one, other), block, PAGE)
    return merged(found)


def _by_block(file: SnapshotFile) -> dict[int, list[Placed]]:
    """Return the stored pieces, cut at multiples of BLOCK and grouped by block address."""
    blocks: dict[int, list[Placed]] = {}
    for piece in file.placed():
        end = piece.gpa + piece.length
        for block in range(piece.gpa // BLOCK * BLOCK, end, BLOCK):
            low, high = max(piece.gpa, block), min(end, block + BLOCK)
            offset = piece.offset + low - piece.gpa
            blocks.setdefault(block, []).append(Placed(low, high - low, piece.file, offset))
    return blocks


def _identity(pieces: list[Placed]) -> object:
    """Return a key that is equal only for equal memory: a block's SHA-256, or its place."""
    if len(pieces) == 1 and pieces[0].length == BLOCK and pieces[0].offset % BLOCK == 0:
        file, offset = pieces[0].file, pieces[0].offset
        return file.hashes[offset // BLOCK - file.header.memory.offset // BLOCK]
    return [(piece.gpa, piece.length, piece.file.identity, piece.offset) for piece in pieces]


def page_count(memory: tuple[MemoryChange, ...]) -> int:
    """Return the number of pages in ranges."""
    return sum(change.end - change.start for change in memory) // PAGE
