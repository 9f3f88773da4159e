"""ELF files of the cross toolchain; pyelftools' sections and objcopy's output are the judges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from pyvmm.boot.image import LoadedImage, load_image
from pyvmm.errors import ImageError
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.boot import linked
from tests.conftest import tool

OTHERS = 0xFF  # the content of memory before the load


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        memory.write(RAM_BASE, bytes([OTHERS]) * memory.size)
        yield memory


def check_sections(path: Path, image: LoadedImage, memory: GuestMemory) -> None:
    """Compare every section with memory: all of them have moved together with the entry point."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        symbols: Any = elf.get_section_by_name(".symtab")
        (start,) = symbols.get_symbol_by_name("_start")
        moved = image.entry - start["st_value"]
        for section in elf.iter_sections():
            place, size = section["sh_addr"] + moved, section["sh_size"]
            if not section["sh_flags"] & SH_FLAGS.SHF_ALLOC or not size:
                continue
            zero = section["sh_type"] == "SHT_NOBITS"
            size = min(size, 0x100) if zero else size
            assert memory.read(place, size) == (bytes(size) if zero else section.data())


@pytest.mark.parametrize("kind", linked.BOOTS)
def test_load_image_puts_every_section_of_a_linked_elf_in_its_place(
    kind: str, cross_gcc: Path, tmp_path: Path, memory: GuestMemory
) -> None:
    path = linked.link(cross_gcc, linked.BOOTS[kind], tmp_path / kind)

    image = load_image(path, memory)

    check_sections(path, image, memory)
    assert bool(image.flags.BIG_ENDIAN) is (kind == "big-endian")


@pytest.mark.parametrize(
    ("kind", "entry", "details"),
    [
        ("fixed", 0x8008_0000, 0),
        ("pie-linked-in-ram", 0x8020_0000, 0),
        ("pie-linked-at-0", 0x8008_0000, 1),
        ("pie-linked-at-qemus-ram", 0x8008_0000, 1),
        ("higher-half", 0x8008_0000, 0),
        ("higher-half-physical-entry", 0x8008_0000, 0),
    ],
)
def test_load_image_moves_an_elf_when_it_is_linked_outside_ram(
    kind: str, entry: int, details: int, cross_gcc: Path, tmp_path: Path, memory: GuestMemory
) -> None:
    path = linked.link(cross_gcc, linked.BOOTS[kind], tmp_path / kind)

    image = load_image(path, memory)

    assert entry <= image.entry < entry + 0x2000
    assert len(image.details) == details


def test_load_image_loads_a_vmlinux_like_the_image_that_objcopy_makes(
    cross_gcc: Path, tmp_path: Path, memory: GuestMemory
) -> None:
    path = linked.link(cross_gcc, linked.BOOTS["vmlinux"], tmp_path / "vmlinux")
    flat = tmp_path / "Image"
    linked.run([tool("aarch64-linux-gnu-objcopy"), "-O", "binary", path, flat])

    image = load_image(path, memory)

    content = memory.read(memory.base, memory.size)
    with GuestMemory(RAM_BASE, 16 * MIB) as other:
        other.write(RAM_BASE, bytes([OTHERS]) * other.size)
        judge = load_image(flat, other)
        assert content == other.read(other.base, other.size)
    assert image.kind == "vmlinux"
    assert image.replace(kind=judge.kind) == judge


@pytest.mark.parametrize("words", [("-static",), ("-static-pie",), ("-no-pie",), ("-pie",)])
def test_load_image_refuses_a_program_for_linux(
    words: tuple[str, ...], cross_gcc: Path, tmp_path: Path, memory: GuestMemory
) -> None:
    path = linked.link_program(cross_gcc, tmp_path / "program", *words)

    with pytest.raises(ImageError, match="is a program for Linux, not a kernel") as caught:
        load_image(path, memory)

    assert "initrd" in (caught.value.hint or "")


def test_load_image_refuses_an_elf_for_qemus_virt_machine(
    cross_gcc: Path, tmp_path: Path, memory: GuestMemory
) -> None:
    path = linked.link(cross_gcc, linked.QEMUS, tmp_path / "virt.elf")

    with pytest.raises(ImageError, match="was built for QEMU's virt machine") as caught:
        load_image(path, memory)

    assert "link it to run at 0x80080000" in (caught.value.hint or "")
