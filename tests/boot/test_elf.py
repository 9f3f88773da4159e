from __future__ import annotations

import io
import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import fields

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.elf import (
    Header,
    ProgramHeader,
    load_elf,
    read_header,
    read_program_headers,
)
from pyvmm.errors import ImageError
from pyvmm.memory.ram import GuestMemory
from tests.boot.elves import (
    BASE,
    BIG,
    CODE,
    ET_DYN,
    ET_EXEC,
    LITTLE,
    PT_DYNAMIC,
    PT_INTERP,
    PT_LOAD,
    PT_NOTE,
    Elf,
    Phdr,
)

RAM = 0x8000_0000
SIZE = 0x10_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM, SIZE) as memory:
        yield memory


def load(elf: Elf | bytes, memory: GuestMemory) -> tuple[int, tuple[tuple[int, int], ...]]:
    data = elf.build() if isinstance(elf, Elf) else elf
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        placed = load_elf(file, "it.elf", memory)
    return placed.entry, placed.ranges


def test_load_elf_puts_a_segment_at_its_address(memory: GuestMemory) -> None:
    entry, ranges = load(Elf(entry=BASE + 8), memory)

    assert memory.read(BASE, len(CODE)) == CODE
    assert entry == BASE + 8
    assert ranges == ((BASE, BASE + len(CODE)),)


def test_load_elf_loads_every_segment(memory: GuestMemory) -> None:
    phdrs = tuple(Phdr(vaddr=BASE + n * 0x1000, data=bytes([n]) * 32) for n in range(1, 9))

    load(Elf(phdrs=phdrs, entry=BASE + 0x1000), memory)

    for n in range(1, 9):
        assert memory.read(BASE + n * 0x1000, 33) == bytes([n]) * 32 + b"\0"


def test_load_elf_zeroes_bss(memory: GuestMemory) -> None:
    memory.write(RAM, b"\xff" * SIZE)

    _, ranges = load(Elf(phdrs=(Phdr(memsz=0x5000),)), memory)

    assert ranges == ((BASE, BASE + 0x5000),)
    assert memory.read(BASE + len(CODE), 0x5000 - len(CODE)) == bytes(0x5000 - len(CODE))
    assert memory.read(BASE + 0x5000, 4) == b"\xff" * 4


def test_load_elf_uses_physical_addresses_and_moves_the_entry_point(memory: GuestMemory) -> None:
    virtual = 0xFFFF_8000_0008_0000

    entry, _ = load(Elf(phdrs=(Phdr(vaddr=virtual, paddr=BASE),), entry=virtual + 4), memory)

    assert memory.read(BASE, len(CODE)) == CODE
    assert entry == BASE + 4


def test_load_elf_places_a_static_pie(memory: GuestMemory) -> None:
    phdrs = (Phdr(vaddr=0), Phdr(vaddr=0x2000, data=b"data"), Phdr(type=PT_DYNAMIC))

    entry, _ = load(Elf(phdrs=phdrs, entry=0x10, type=ET_DYN), memory)

    assert entry == RAM + 0x8_0000 + 0x10
    assert memory.read(RAM + 0x8_2000, 4) == b"data"


def test_load_elf_aligns_a_static_pie(memory: GuestMemory) -> None:
    entry, _ = load(Elf(phdrs=(Phdr(vaddr=0, align=0x9_0000),), entry=0, type=ET_DYN), memory)

    assert entry % 0x9_0000 == 0


def test_load_elf_ignores_an_empty_segment(memory: GuestMemory) -> None:
    _, ranges = load(Elf(phdrs=(Phdr(), Phdr(vaddr=0, data=b""))), memory)

    assert len(ranges) == 1


def note(kind: int, desc: bytes) -> bytes:
    """Return a note of the name GNU."""
    return struct.pack("<3I4s", 4, len(desc), kind, b"GNU") + desc.ljust(-(-len(desc) // 4) * 4)


GOOD = Elf()
TWO = (Phdr(), Phdr(vaddr=BASE + 0x20))


@pytest.mark.parametrize(
    ("elf", "message", "hint"),
    [
        (GOOD.replace(machine=62), "an ELF for x86-64, not AArch64", "a kernel for arm64"),
        (GOOD.replace(machine=3), "an ELF for 32-bit x86, not AArch64", "a kernel for arm64"),
        (GOOD.replace(machine=40), "an ELF for 32-bit Arm, not AArch64", "a kernel for arm64"),
        (GOOD.replace(machine=0x1234), "an ELF for 4660, not AArch64", "a kernel for arm64"),
        (GOOD.replace(type=1), "not an executable but a relocatable object", "`ld -o FILE`"),
        (GOOD.replace(type=4), "not an executable but a core dump", None),
        (GOOD.replace(type=0xFE00), "not an executable but", None),
        (GOOD.replace(phdrs=()), "0 program headers", None),
        (GOOD.replace(phnum=0xFFFF), "65535 program headers", None),
        (GOOD.replace(phentsize=8), "program headers of 8 bytes", None),
        (GOOD.replace(phdrs=(Phdr(type=PT_DYNAMIC),)), "no loadable segment", "PT_LOAD"),
        (GOOD.replace(phdrs=TWO), "0x80080000 to 0x80080040 overlaps", "`readelf -lW`"),
        (
            GOOD.replace(phdrs=(Phdr(vaddr=0x40_0000),), entry=0x40_0000),
            "at 0x400000 to 0x400040, outside RAM (0x80000000 to 0x80100000, 1 MiB)",
            "link it to run at 0x80080000",
        ),
        (
            GOOD.replace(phdrs=(Phdr(memsz=0x40_0000),)),
            "at 0x80080000 to 0x80480000, outside RAM",
            "use `memory`=8M or more",
        ),
        (GOOD.replace(phdrs=(Phdr(vaddr=0xFFFF_FFFF_FFFF_FFF0),)), "outside RAM", "link it"),
        (GOOD.replace(phdrs=(Phdr(memsz=0x10),)), "has 0x40 bytes in the file", "copy or download"),
        (
            GOOD.replace(phdrs=(Phdr(filesz=0x1000, memsz=0x1000),)),
            "truncated: the segment at 0x80080000 to 0x80081000 ends at byte 0x1078",
            None,
        ),
        (GOOD.replace(entry=BASE + 0x40), "entry point 0x80080040 is in none", "-e SYMBOL"),
        (GOOD.replace(entry=0), "entry point 0x0 is in none", "`readelf -lW`"),
        (GOOD.replace(entry=BASE + 2), "entry point 0x80080002 is not a multiple of 4", "-e SYM"),
        (
            GOOD.replace(phdrs=(Phdr(), Phdr(type=PT_INTERP, data=b"/red/herring\0"))),
            "it needs the dynamic loader '/red/herring', which a bare machine lacks",
            "-static",
        ),
        (
            GOOD.replace(phdrs=(Phdr(), Phdr(type=PT_INTERP, data=b"/lib/ld-musl-aarch64.so.1\0"))),
            "a program for Linux, not a kernel: it needs the dynamic loader '/lib/ld-musl",
            "initrd",
        ),
        (
            GOOD.replace(
                phdrs=(Phdr(), Phdr(type=PT_NOTE, data=note(4, b"X") + note(1, bytes(16))))
            ),
            "a program for Linux, not a kernel: its .note.ABI-tag says so",
            "initrd",
        ),
        (
            GOOD.replace(phdrs=(Phdr(vaddr=0), Phdr(vaddr=0x4000_0000)), entry=0),
            "was built for QEMU's virt machine, whose RAM starts at 0x40000000: "
            "it has the segment at 0x40000000 to 0x40000040",
            "link it to run at 0x80080000",
        ),
    ],
)
def test_load_elf_refuses_an_elf_that_cannot_boot(
    memory: GuestMemory, elf: Elf, message: str, hint: str | None
) -> None:
    with pytest.raises(ImageError, match=re.escape(message)) as caught:
        load(elf, memory)

    assert "it.elf" in caught.value.message
    assert (hint or "") in (caught.value.hint or pytest.fail("no hint"))
    assert memory.read(RAM, SIZE) == bytes(SIZE)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [(4, 1, "32-bit"), (5, 2, "not AArch64"), (4, 7, "damaged"), (5, 7, "damaged")],
)
def test_load_elf_checks_the_identification(
    memory: GuestMemory, position: int, value: int, message: str
) -> None:
    data = bytearray(GOOD.build())
    data[position] = value

    with pytest.raises(ImageError, match=message):
        load(bytes(data), memory)


def test_load_elf_ignores_notes_that_name_no_system(memory: GuestMemory) -> None:
    for data in (b"", b"\xff" * 40, note(1, b"\3\0\0\0"), note(3, bytes(20)), note(1, b"")):
        load(GOOD.replace(phdrs=(Phdr(), Phdr(type=PT_NOTE, data=data))), memory)


def test_load_elf_refuses_a_truncated_file(memory: GuestMemory) -> None:
    whole = Elf(phdrs=(Phdr(), Phdr(vaddr=BASE + 0x1000))).build()

    for length in range(4, len(whole)):
        with pytest.raises(ImageError, match=r"truncated|damaged") as caught:
            load(whole[:length], memory)
        assert caught.value.hint == "copy or download it again"


def test_load_elf_refuses_a_file_without_its_section_headers(memory: GuestMemory) -> None:
    data = bytearray(GOOD.build())
    data[40:48] = len(data).to_bytes(8, "little")  # e_shoff
    data[60:62] = b"\x05\0"  # e_shnum
    data[58:60] = b"\x40\0"  # e_shentsize

    with pytest.raises(ImageError, match="truncated: its section headers end at byte"):
        load(bytes(data), memory)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """Draw a valid ELF, then change some bytes and numbers, and perhaps its length."""
    data = bytearray(Elf(phdrs=(Phdr(), Phdr(vaddr=BASE + 0x1000, memsz=0x800))).build())
    numbers = st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 1 << 31, 1 << 63, (1 << 64) - 1, RAM, SIZE])
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from([1, 2, 4, 8]))
        position = draw(st.integers(4, 0xB0 - size))
        value = draw(st.one_of(numbers, st.integers(0, (1 << 64) - 1)))
        data[position : position + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(data[: draw(st.integers(4, len(data)))]) + draw(st.binary(max_size=8))


@given(mutations())
def test_load_elf_loads_a_damaged_file_inside_ram_or_refuses_it(data: bytes) -> None:
    with GuestMemory(RAM, SIZE) as memory:
        try:
            entry, ranges = load(data, memory)
        except ImageError as error:
            assert "\n" not in error.message
        else:
            assert any(start <= entry < end for start, end in ranges)
            assert all(memory.contains(start, end - start) for start, end in ranges)


PHDRS = st.builds(
    Phdr,
    vaddr=st.integers(0, (1 << 64) - 1),
    paddr=st.integers(0, (1 << 64) - 1),
    memsz=st.integers(0, (1 << 64) - 1),
    filesz=st.integers(0, (1 << 64) - 1),
    type=st.sampled_from([PT_LOAD, PT_INTERP]),
    align=st.integers(0, (1 << 64) - 1),
)


@given(
    st.builds(
        Elf,
        phdrs=st.lists(PHDRS, min_size=1, max_size=5).map(tuple),
        entry=st.integers(0, (1 << 64) - 1),
        type=st.sampled_from([ET_EXEC, ET_DYN]),
        order=st.sampled_from([LITTLE, BIG]),
    )
)
def test_headers_agree_with_pyelftools(elf: Elf) -> None:
    file = io.BytesIO(elf.build())

    header = read_header(file, "it.elf")
    segments = read_program_headers(file, header, "it.elf")

    judge = ELFFile(file)
    names = [field.name for field in fields(Header) if field.name not in ("type", "order")]
    assert {name: getattr(header, name) for name in names} == {
        name: judge.header[f"e_{name}"] for name in names
    }
    assert (header.type == ET_DYN) == (judge.header["e_type"] == "ET_DYN")
    assert (header.order == LITTLE) == judge.little_endian
    names = [field.name for field in fields(ProgramHeader) if field.name != "type"]
    assert [[getattr(segment, name) for name in names] for segment in segments] == [
        [segment.header[f"p_{name}"] for name in names] for segment in judge.iter_segments()
    ]
    kinds = {PT_LOAD: "PT_LOAD", PT_INTERP: "PT_INTERP"}
    assert [kinds[segment.type] for segment in segments] == [
        judge.get_segment(n).header["p_type"] for n in range(len(segments))
    ]


@st.composite
def layouts(draw: st.DrawFn) -> Elf:
    """Draw an ELF of several segments, perhaps high, position-independent or with long tails."""
    places = draw(st.lists(st.integers(0, 15), min_size=1, max_size=4, unique=True))
    high = draw(st.sampled_from([0, 0xFFFF_0000_0000_0000]))
    kind = draw(st.sampled_from([ET_EXEC, ET_DYN]))
    linked = RAM if kind == ET_EXEC else draw(st.sampled_from([RAM, 0, 0x4000_0000, 1 << 47]))
    phdrs = []
    for place in places:
        data = draw(st.binary(min_size=4, max_size=0x1000))
        address = linked + place * 0x1000
        tail = draw(st.sampled_from([0, 1, 0x800, 0x3000]))
        phdrs.append(Phdr(data=data, vaddr=address + high, paddr=address, memsz=len(data) + tail))
    first = draw(st.sampled_from(phdrs))
    entry = draw(st.sampled_from([first.vaddr, first.paddr or 0]))
    order = draw(st.sampled_from([LITTLE, BIG]))
    return Elf(phdrs=tuple(phdrs), entry=entry, type=kind, order=order)


@given(layouts())
def test_load_elf_loads_the_segments_that_pyelftools_reads(elf: Elf) -> None:
    judge = ELFFile(io.BytesIO(elf.build()))
    segments = [(item["p_paddr"], item.data(), item["p_memsz"]) for item in judge.iter_segments()]
    lowest = min(start for start, _, _ in segments)
    moved = 0 if RAM <= lowest < RAM + SIZE else RAM + 0x8_0000 - lowest
    expected = bytearray(b"\xff" * SIZE)
    for start, _, memsz in segments:
        offset = start + moved - RAM
        expected[offset : offset + memsz] = bytes(memsz)
    for start, data, _ in segments:
        offset = start + moved - RAM
        expected[offset : offset + len(data)] = data

    with GuestMemory(RAM, SIZE) as memory:
        memory.write(RAM, b"\xff" * SIZE)
        entry, ranges = load(elf, memory)

        assert memory.read(RAM, SIZE) == expected
    assert sorted(ranges) == sorted((at + moved, at + moved + size) for at, _, size in segments)
    assert (judge["e_entry"] - entry + moved) % (1 << 48) == 0


@given(st.binary(max_size=200))
def test_load_elf_refuses_garbage_behind_the_magic(data: bytes) -> None:
    with GuestMemory(RAM, SIZE) as memory, pytest.raises(ImageError):
        load(b"\x7fELF" + data, memory)
