"""Unified kernel images; tests/guests/test_images.py boots one that Debian's ukify makes."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.image import load_image
from pyvmm.boot.uki import read_uki
from pyvmm.errors import ImageError
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.boot.elves import BASE, CODE, Elf
from tests.boot.packing import efi_program, zboot

LINUX = (b".linux", Elf().build())
OSREL = (b".osrel", b'ID=debian\nPRETTY_NAME="Debian \x1b[31m 13"\n')
ALL = (
    (b".text", b"code"),
    OSREL,
    (b".uname", b"6.12.1-arm64"),
    (b".cmdline", b" root=/dev/sda1\tquiet\n\0"),
    (b".initrd", b"cpio" * 1000),
    LINUX,
)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        yield memory


def write(path: Path, *sections: tuple[bytes, bytes], machine: int = 0xAA64) -> Path:
    path.write_bytes(efi_program(*sections, machine=machine))
    return path


def test_load_image_takes_kernel_initrd_and_command_line_from_a_uki(
    tmp_path: Path, memory: GuestMemory
) -> None:
    image = load_image(write(tmp_path / "uki.efi", *ALL), memory)

    assert (image.kind, image.wrappings, image.entry) == ("ELF", ("unified kernel image",), BASE)
    assert memory.read(BASE, len(CODE)) == CODE
    assert image.initrd is not None
    assert memory.read(image.initrd[0], image.initrd[1] - image.initrd[0]) == b"cpio" * 1000
    assert image.cmdline == "root=/dev/sda1 quiet"
    assert image.notes == ()
    assert image.details == (
        "Debian  [31m 13, Linux 6.12.1-arm64",
        "its command line is root=/dev/sda1 quiet",
    )


def test_load_image_prefers_the_given_initrd_to_that_of_a_uki(
    tmp_path: Path, memory: GuestMemory
) -> None:
    given = tmp_path / "initrd"
    given.write_bytes(b"mine")

    image = load_image(write(tmp_path / "uki.efi", *ALL), memory, initrd=given)

    assert image.initrd is not None
    assert memory.read(image.initrd[0], 4) == b"mine"
    assert image.notes == (f"`initrd` replaces the initrd in {tmp_path}/uki.efi",)


def test_load_image_boots_a_uki_of_a_kernel_alone(tmp_path: Path, memory: GuestMemory) -> None:
    image = load_image(write(tmp_path / "uki.efi", LINUX), memory)

    assert (image.initrd, image.cmdline, image.details) == (None, "", ())


def test_load_image_unpacks_the_kernel_of_a_uki(tmp_path: Path, memory: GuestMemory) -> None:
    packed = zboot(b"gzip", gzip.compress(Elf().build()))
    uki = gzip.compress(efi_program((b".linux", packed)))
    path = tmp_path / "uki.efi.gz"
    path.write_bytes(uki)

    image = load_image(path, memory)

    assert image.entry == BASE
    assert image.wrappings == ("gzip", "unified kernel image", "EFI zboot, gzip")


def test_load_image_boots_the_first_profile_of_a_uki(tmp_path: Path, memory: GuestMemory) -> None:
    profiles = (
        (b".cmdline", b"common"),
        (b".profile", b"ID=one"),
        (b".cmdline", b"first"),
        (b".profile", b"ID=two"),
        (b".cmdline", b"second"),
    )

    image = load_image(write(tmp_path / "uki.efi", LINUX, *profiles), memory)

    assert image.cmdline == "first"


def test_load_image_refuses_a_truncated_uki(tmp_path: Path, memory: GuestMemory) -> None:
    path = write(tmp_path / "uki.efi", *ALL)
    path.write_bytes(path.read_bytes()[:-600])

    with pytest.raises(ImageError, match=r"is truncated: section \.linux ends at byte"):
        load_image(path, memory)


def test_load_image_names_a_uki_for_another_machine(tmp_path: Path, memory: GuestMemory) -> None:
    path = write(tmp_path / "uki.efi", *ALL, machine=0x8664)

    with pytest.raises(ImageError, match="an EFI program for x86-64"):
        load_image(path, memory)


def test_read_uki_returns_none_for_another_efi_program() -> None:
    assert read_uki(io.BytesIO(efi_program((b".text", b"code"))), "it.efi") is None


@given(
    st.lists(st.tuples(st.integers(0, 0x300), st.binary(min_size=1, max_size=8)), max_size=4),
    st.integers(0, 1 << 14),
)
def test_read_uki_reads_a_damaged_file_or_refuses_it(
    changes: list[tuple[int, bytes]], length: int
) -> None:
    data = bytearray(efi_program(*ALL))
    for position, value in changes:
        data[position : position + len(value)] = value

    try:
        found = read_uki(io.BytesIO(data[:length]), "it.efi")
    except ImageError as error:
        assert "it.efi is truncated" in error.message
    else:
        assert found is None or len(found.linux.read()) <= length
