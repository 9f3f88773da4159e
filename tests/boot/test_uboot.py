"""U-Boot in files without a magic: refused by its version and its address, or mentioned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import uboot
from pyvmm.boot.image import load_image
from pyvmm.errors import ImageError
from pyvmm.layout import KERNEL_OFFSET, MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.boot.elves import ET_DYN, Elf, Phdr
from tests.boot.formats import KERNEL, UBOOT_VERSION, linux, uboot_start

FLAT = RAM_BASE + KERNEL_OFFSET
NOTE = "contains U-Boot 2025.01-3. U-Boot for another machine does not run on pyvmm's"


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        yield memory


@pytest.mark.parametrize(
    "data",
    [uboot_start(FLAT), KERNEL + UBOOT_VERSION % b"", linux(0x8_0000) + UBOOT_VERSION % b""],
    ids=["linked for the address", "start code of another CPU", "header of Linux"],
)
def test_load_image_mentions_uboot_that_may_be_for_this_machine(
    tmp_path: Path, memory: GuestMemory, data: bytes
) -> None:
    path = tmp_path / "u-boot.bin"
    path.write_bytes(data.replace(b"MZ", b"\x1f\x20"))

    image = load_image(path, memory)

    assert image.entry == FLAT
    assert image.notes == (f"{path} {NOTE}",)


def test_load_image_mentions_uboot_in_an_elf_that_it_moves(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path = tmp_path / "uboot.elf"
    moved = Phdr(vaddr=0, data=uboot_start(0))
    path.write_bytes(Elf(phdrs=(moved,), entry=0, type=ET_DYN).build())

    image = load_image(path, memory)

    assert image.notes == (f"{path} {NOTE}",)


def test_load_image_refuses_uboot_with_the_header_of_linux_and_another_address(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path = tmp_path / "u-boot.bin"
    path.write_bytes(linux(0x8_0000).replace(b"MZ", b"\x1f\x20")[:64] + uboot_start(0x8_0000)[8:])

    with pytest.raises(ImageError, match=r"U-Boot 2025\.01-3, which is linked for address 0x80000"):
        load_image(path, memory)


@pytest.mark.parametrize(
    "text",
    [
        b"U-Boot 2025.01",
        b"started by U-Boot (Jun 24 2026 - 09:07:15 +0000)",
        b"U-Boot 2025.01 (today)",
    ],
)
def test_load_image_runs_a_flat_binary_with_words_about_uboot(
    tmp_path: Path, memory: GuestMemory, text: bytes
) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(uboot_start(0).replace(UBOOT_VERSION % b"", text))

    image = load_image(path, memory)

    assert (image.kind, image.notes) == ("flat binary", ())


@given(
    head=st.binary(max_size=200).map(lambda data: data[: len(data) & ~7]),
    address=st.integers(0, (1 << 56) - 1).map(lambda number: number << 8),
    tail=st.binary(max_size=99),
)
def test_find_returns_the_address_in_the_start_code(head: bytes, address: int, tail: bytes) -> None:
    found = uboot.find(bytes(len(head)) + uboot_start(address) + tail)

    assert found == uboot.UBoot("U-Boot 2025.01-3", address)


@given(data=st.binary(max_size=2000))
def test_find_needs_a_version(data: bytes) -> None:
    assert uboot.find(data) is None
