from __future__ import annotations

import pytest

from pyvmm.kvm import structs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.structs import Struct, words

PAIR = Struct(
    "struct pair",
    """
    u32 first
    u32 pad
    u64 deep.second[2]
    s32 third
    """,
)


def test_members_have_the_offsets_and_names_of_c() -> None:
    assert [(m.name, m.path, m.offset) for m in PAIR.members] == [
        ("first", "first", 0),
        ("pad", "pad", 4),
        ("second", "deep.second", 8),
        ("third", "third", 24),
    ]
    assert PAIR.size == 28


def test_part_of_a_structure_has_offsets_from_its_start() -> None:
    part = Struct("struct whole", "u64 a\nu8 b", at=32)

    assert [m.offset for m in part.members] == [32, 40]
    assert part.size == 9


def test_pack_is_little_endian_with_zeros_for_missing_values() -> None:
    packed = PAIR.pack({"first": 1, "second": [2], "third": -1})

    assert packed.hex() == "01000000 00000000 0200000000000000 0000000000000000 ffffffff".replace(
        " ", ""
    )


def test_unpack_is_the_inverse_of_pack() -> None:
    packed = PAIR.pack({"first": 7, "second": [8, 9], "third": -3})

    assert PAIR.unpack(packed) == {"first": 7, "third": -3}
    assert PAIR.unpack_arrays(packed) == {"second": (8, 9)}


def test_pack_of_an_unknown_member_names_it() -> None:
    with pytest.raises(TypeError, match="struct pair has no fourth"):
        PAIR.pack({"fourth": 1})


def test_pack_of_too_long_an_array_is_refused() -> None:
    with pytest.raises(ValueError, match=r"struct pair.deep.second holds 2 values"):
        PAIR.pack({"second": [1, 2, 3]})


def test_struct_refuses_an_invalid_member() -> None:
    with pytest.raises(ValueError, match="not a member: 'u32 first;'"):
        Struct("struct wrong", "u32 first;").size  # noqa: B018 - it is read only then


def test_words_show_names_hex_numbers_and_arrays() -> None:
    shown = words({"cap": Cap.ARM_SVE, "slot": 3, "addr": 0x8000_0000, "args": [1, 16]})

    assert shown == "cap=ARM_SVE, slot=3, addr=0x80000000, args=[1 0x10]"


def test_sizes_are_those_in_the_ioctl_numbers() -> None:
    """Check sizes of linux/kvm.h; test_build.py checks the others."""
    assert structs.USERSPACE_MEMORY_REGION.size == 32
    assert structs.GUEST_DEBUG.size == 520
    assert structs.IOEVENTFD.size == 64
    assert structs.VCPU_EVENTS.size == 64
