"""The C structures of KVM's interface, declared as in the kernel's headers.

Each declaration follows linux/kvm.h or asm/kvm.h (arm64), padding included. _build.py turns it
into static assertions of its size and of each offset. So the extension compiles only where this
file and the kernel's headers agree.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum

Value = int | Sequence[int]
Buffer = bytes | bytearray | memoryview

_CODES = {"u8": "B", "u16": "H", "u32": "I", "s32": "i", "u64": "Q"}
_PADDING = ("pad", "reserved")


class Member:
    """One member of a structure: ``path`` is its C expression, ``name`` the last component."""

    __slots__ = ("code", "length", "name", "offset", "path")

    def __init__(self, path: str, code: str, length: int, offset: int) -> None:
        self.name = path.rpartition(".")[2]
        self.path = path
        self.code = code
        self.length = length
        self.offset = offset

    @property
    def is_padding(self) -> bool:
        """Whether the member is padding."""
        return self.name.startswith(_PADDING)


def code_size(code: str) -> int:
    """Return the size of one value with that format code."""
    return struct.calcsize("<" + code)


class Struct:
    """A C structure, packed to and unpacked from little-endian bytes.

    ``at`` is the first member's offset, for a part of a larger structure. ``newer`` names a macro
    that came with a structure or member that the oldest supported headers lack. A Struct parses its
    declaration at its first use: a run uses a quarter of all Structs.
    """

    def __init__(self, ctype: str, members: str, *, at: int = 0, newer: str = "") -> None:
        self.ctype = ctype
        self.at = at
        self.newer = newer
        self._declaration = members

    @functools.cached_property
    def members(self) -> tuple[Member, ...]:
        """The members in order, padding included."""
        return tuple(_parse(self._declaration, self.at))

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self._codec.size

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(member.name for member in self.members)

    @functools.cached_property
    def _codec(self) -> struct.Struct:
        return struct.Struct("<" + "".join(f"{m.length}{m.code}" for m in self.members))

    def pack(self, values: Mapping[str, Value]) -> bytearray:
        """Return the structure's bytes; missing values, also of arrays, are zero."""
        if not values.keys() <= self._names:
            raise TypeError(f"{self.ctype} has no {', '.join(values.keys() - self._names)}")
        flat: list[int] = []
        for member in self.members:
            value = values.get(member.name, 0)
            items = (value,) if isinstance(value, int) else tuple(value)
            if len(items) > member.length:
                raise ValueError(f"{self.ctype}.{member.path} holds {member.length} values")
            flat.extend(items)
            flat.extend((0,) * (member.length - len(items)))
        return bytearray(self._codec.pack(*flat))

    def unpack(self, data: Buffer) -> dict[str, int]:
        """Return the single members by name, without padding and arrays."""
        return {name: items[0] for name, items in self._items(data) if len(items) == 1}

    def unpack_arrays(self, data: Buffer) -> dict[str, tuple[int, ...]]:
        """Return the array members by name."""
        return {name: items for name, items in self._items(data) if len(items) > 1}

    def _items(self, data: Buffer) -> Iterator[tuple[str, tuple[int, ...]]]:
        flat = self._codec.unpack_from(data)
        start = 0
        for member in self.members:
            if not member.is_padding:
                yield member.name, flat[start : start + member.length]
            start += member.length


def _parse(members: str, offset: int) -> Iterator[Member]:
    for line in members.strip().splitlines():
        kind, _, rest = line.strip().partition(" ")
        path, bracket, number = rest.strip().partition("[")
        is_word = path.replace(".", "_").isidentifier()
        if kind not in _CODES or not is_word or (bracket and number[-1:] != "]"):
            raise ValueError(f"not a member: {line!r}")
        code, length = _CODES[kind], int(number[:-1]) if bracket else 1
        yield Member(path, code, length, offset)
        offset += length * code_size(code)


def words(values: Mapping[str, Value]) -> str:
    """Return members and their values for an error message, large numbers in hex."""
    return ", ".join(f"{name}={_word(value)}" for name, value in values.items())


def _word(value: Value) -> str:
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, int):
        return f"{value:#x}" if value > 9 else f"{value}"
    return "[" + " ".join(_word(item) for item in value) + "]"


# linux/kvm.h, in its order.
USERSPACE_MEMORY_REGION = Struct(
    "struct kvm_userspace_memory_region",
    """
    u32 slot
    u32 flags
    u64 guest_phys_addr
    u64 memory_size
    u64 userspace_addr
    """,
)
IRQ_LEVEL = Struct(
    "struct kvm_irq_level",
    """
    u32 irq
    u32 level
    """,
)
COALESCED_MMIO_ZONE = Struct(
    "struct kvm_coalesced_mmio_zone",
    """
    u64 addr
    u32 size
    u32 pio
    """,
)
DIRTY_LOG = Struct(
    "struct kvm_dirty_log",
    """
    u32 slot
    u32 padding1
    u64 dirty_bitmap
    """,
)
COPY_MTE_TAGS = Struct(
    "struct kvm_arm_copy_mte_tags",
    """
    u64 guest_ipa
    u64 length
    u64 addr
    u64 flags
    u64 reserved[2]
    """,
)
MP_STATE = Struct("struct kvm_mp_state", "u32 mp_state")
GUEST_DEBUG = Struct(
    "struct kvm_guest_debug",
    """
    u32 control
    u32 pad
    u64 arch.dbg_bcr[16]
    u64 arch.dbg_bvr[16]
    u64 arch.dbg_wcr[16]
    u64 arch.dbg_wvr[16]
    """,
)
IOEVENTFD = Struct(
    "struct kvm_ioeventfd",
    """
    u64 datamatch
    u64 addr
    u32 len
    s32 fd
    u32 flags
    u8  pad[36]
    """,
)
ENABLE_CAP = Struct(
    "struct kvm_enable_cap",
    """
    u32 cap
    u32 flags
    u64 args[4]
    u8  pad[64]
    """,
)
IRQFD = Struct(
    "struct kvm_irqfd",
    """
    u32 fd
    u32 gsi
    u32 flags
    u32 resamplefd
    u8  pad[16]
    """,
)
ONE_REG = Struct(
    "struct kvm_one_reg",
    """
    u64 id
    u64 addr
    """,
)
REG_LIST = Struct("struct kvm_reg_list", "u64 n")
MSI = Struct(
    "struct kvm_msi",
    """
    u32 address_lo
    u32 address_hi
    u32 data
    u32 flags
    u32 devid
    u8  pad[12]
    """,
)
CREATE_DEVICE = Struct(
    "struct kvm_create_device",
    """
    u32 type
    u32 fd
    u32 flags
    """,
)
DEVICE_ATTR = Struct(
    "struct kvm_device_attr",
    """
    u32 flags
    u32 group
    u64 attr
    u64 addr
    """,
)

# asm/kvm.h of arm64, in its order.
VCPU_INIT = Struct(
    "struct kvm_vcpu_init",
    """
    u32 target
    u32 features[7]
    """,
)
VCPU_EVENTS = Struct(
    "struct kvm_vcpu_events",
    """
    u8  exception.serror_pending
    u8  exception.serror_has_esr
    u8  exception.ext_dabt_pending
    u8  pad[5]
    u64 exception.serror_esr
    u32 reserved[12]
    """,
)
REG_MASK_RANGE = Struct(
    "struct reg_mask_range",
    """
    u64 addr
    u32 range
    u32 reserved[13]
    """,
    newer="KVM_ARM_GET_REG_WRITABLE_MASKS",
)
INT = Struct("int", "s32 value")
