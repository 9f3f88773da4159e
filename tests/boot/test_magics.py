"""Files that are no image: named, with what to do instead. A flat binary still runs."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import magics
from pyvmm.boot.image import load_image
from pyvmm.errors import ImageError
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.format import MAGIC as SNAPSHOT
from tests.boot import formats
from tests.boot.elves import Elf
from tests.boot.formats import CPIO, KERNEL, REFUSED, linux, with_efi_header
from tests.boot.packing import zboot


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        yield memory


@pytest.mark.parametrize(
    ("make", "what", "hint"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_load_image_names_a_file_that_is_no_image(
    tmp_path: Path, memory: GuestMemory, make: Callable[[Path], bytes], what: str, hint: str
) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(make(tmp_path))

    with pytest.raises(ImageError, match=what) as caught:
        load_image(path, memory)

    assert hint in (caught.value.hint or "")


def test_load_image_names_the_file_in_a_packing(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "root.img.gz"
    path.write_bytes(gzip.compress(formats.ext(tmp_path, "ext4") + bytes(32 * MIB), 1))

    with pytest.raises(ImageError, match=r"\(gzip\) is an ext file system"):
        load_image(path, memory)


def test_load_image_names_a_kernel_module(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "virtio_blk.ko"
    path.write_bytes(Elf(type=1).build() + b"\0.modinfo\0.text\0")

    with pytest.raises(ImageError, match="is a kernel module") as caught:
        load_image(path, memory)

    assert "insmod" in (caught.value.hint or "")


def test_load_image_names_an_object_that_is_not_linked(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "start.o"
    path.write_bytes(Elf(type=1).build())

    with pytest.raises(ImageError, match="a relocatable object"):
        load_image(path, memory)


def test_snapshot_magic_equals_that_of_the_format() -> None:
    assert magics.identify(SNAPSHOT + b"9") == (
        "a snapshot of pyvmm", "restore it with `pyvmm restore`"
    )  # fmt: skip


# Flat binaries


@pytest.mark.parametrize(
    "data",
    [
        KERNEL,
        bytes(0x2_0000) + KERNEL,  # vectors may come later
        b"\xd5",
        b"\x5d\x00\x00\x14" + KERNEL,  # b 0x174: lzma begins with the same three bytes
        KERNEL.ljust(0x438, b"\0") + b"\x53\xef" + KERNEL * 9,  # ext's magic alone
        (KERNEL * 3)[:0x1FE] + b"\x55\xaa" + KERNEL,  # an MBR's magic alone
        b"MZ" + KERNEL * 5,
        b"\xc3\x28 no text: not UTF-8 ",
    ],
    ids=["nops", "zeros first", "a byte", "branch", "ext", "mbr", "MZ", "text"],
)
def test_load_image_loads_a_flat_binary(tmp_path: Path, memory: GuestMemory, data: bytes) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(data)

    image = load_image(path, memory)

    assert (image.kind, image.notes) == ("flat binary", ())
    assert memory.read(image.entry, len(data)) == data


@given(seed=st.integers(0, 1 << 32), size=st.integers(16, 4096))
def test_identify_finds_nothing_in_noise(seed: int, size: int) -> None:
    assert magics.identify(random.Random(seed).randbytes(size)) is None


def test_identify_finds_nothing_in_the_guests_code(pytestconfig: pytest.Config) -> None:
    guests = sorted((pytestconfig.rootpath / "build/guests").glob("**/*.flat"))

    for path in guests:
        assert magics.identify(path.read_bytes()[: magics.HEAD]) is None


# Initrds

BANNER = b"Linux version 6.1.0 (test) "
WRONG = ("uInitrd", "FIT", "dtb", "Android", "deb", "tar.xz", "qcow2", "EDK2", "config", "PE x86")
RIGHT = ("cpio", "cpio.xz", "ext4", "squashfs", "zeros")


def load_with(initrd: bytes, tmp_path: Path, memory: GuestMemory, kernel: bytes) -> None:
    (tmp_path / "kernel").write_bytes(kernel)
    (tmp_path / "initrd.img").write_bytes(initrd)
    load_image(tmp_path / "kernel", memory, initrd=tmp_path / "initrd.img")


@pytest.mark.parametrize("name", WRONG)
def test_load_image_refuses_an_initrd_that_linux_does_not_read(
    tmp_path: Path, memory: GuestMemory, name: str
) -> None:
    make, what = next(row[1:3] for row in REFUSED if row[0] == name)

    with pytest.raises(ImageError, match=what.replace(r"\(xz\) ", "")) as caught:
        load_with(make(tmp_path), tmp_path, memory, linux() + BANNER)

    assert "initrd.img is " in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("initrd", "what"),
    [
        (linux(), "an arm64 Linux Image"),
        (gzip.compress(linux()), "an arm64 Linux Image"),
        (zboot(b"gzip", gzip.compress(linux())), "an EFI zboot image"),
        (Elf().build(), "an ELF"),
    ],
)
def test_load_image_refuses_a_kernel_as_linuxs_initrd(
    tmp_path: Path, memory: GuestMemory, initrd: bytes, what: str
) -> None:
    with pytest.raises(ImageError, match=f"{what}, which Linux does not read") as caught:
        load_with(initrd, tmp_path, memory, linux() + BANNER)

    assert caught.value.hint == "a kernel: give it as the image"


def test_load_image_refuses_a_kernel_module_as_linuxs_initrd(
    tmp_path: Path, memory: GuestMemory
) -> None:
    module = Elf(type=1).build()

    with pytest.raises(ImageError, match="a kernel module or an object, which Linux") as caught:
        load_with(module, tmp_path, memory, linux() + BANNER)

    assert "Linux reads a cpio archive" in (caught.value.hint or "")


@pytest.mark.parametrize("name", RIGHT)
def test_load_image_accepts_an_initrd_of_linux(
    tmp_path: Path, memory: GuestMemory, name: str
) -> None:
    make = next(row[1] for row in REFUSED if row[0] == name)

    load_with(make(tmp_path), tmp_path, memory, linux() + BANNER)


@pytest.mark.parametrize(
    "initrd",
    [CPIO + gzip.compress(CPIO), gzip.compress(CPIO)[:20], os.urandom(999), b"\x28\xb5\x2f\xfd"],
    ids=["two archives", "damaged", "unknown", "damaged zstd"],
)
def test_load_image_leaves_an_unknown_initrd_to_linux(
    tmp_path: Path, memory: GuestMemory, initrd: bytes
) -> None:
    load_with(initrd, tmp_path, memory, linux() + BANNER)


@pytest.mark.parametrize("kernel", [linux(), Elf().build(), KERNEL], ids=["Image", "ELF", "flat"])
def test_load_image_gives_any_initrd_to_another_kernel(
    tmp_path: Path, memory: GuestMemory, kernel: bytes
) -> None:
    load_with(Elf().build(), tmp_path, memory, kernel)


# Truncated Images


def test_load_image_refuses_a_linux_image_that_ends_within_its_sections(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path = tmp_path / "Image"
    whole = with_efi_header(linux(), raw=len(linux()))
    path.write_bytes(whole[:-1])

    with pytest.raises(ImageError, match=r"Image is truncated: its sections end at byte 0x"):
        load_image(path, memory)


@pytest.mark.parametrize("length", [64, 80, 110])
def test_load_image_refuses_a_linux_image_that_ends_within_its_efi_header(
    tmp_path: Path, memory: GuestMemory, length: int
) -> None:
    path = tmp_path / "Image"
    path.write_bytes(with_efi_header(linux(), raw=len(linux()))[:length])

    with pytest.raises(ImageError, match=r"Image is truncated: its EFI header ends at byte 0x"):
        load_image(path, memory)


def test_load_image_accepts_a_linux_image_shorter_than_its_image_size(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path = tmp_path / "Image"
    path.write_bytes(with_efi_header(linux(image_size=0x40_0000), raw=len(linux())))

    image = load_image(path, memory)

    assert image.ranges[0][1] - image.ranges[0][0] == 0x40_0000
