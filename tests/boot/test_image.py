from __future__ import annotations

import gzip
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm import layout
from pyvmm.boot.image import load_image
from pyvmm.boot.placement import place_dtb
from pyvmm.errors import ImageError
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.boot.elves import BASE, CODE, Elf
from tests.boot.formats import linux
from tests.boot.packing import zboot, zstd_compress
from tests.privileges import bound_by_modes

FLAT = RAM_BASE + layout.KERNEL_OFFSET


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        yield memory


def test_load_image_recognizes_an_elf(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "guest"
    path.write_bytes(Elf().build())

    image = load_image(path, memory)

    assert (image.kind, image.entry) == ("ELF", BASE)
    assert memory.read(BASE, len(CODE)) == CODE


def test_load_image_puts_a_flat_binary_at_the_kernel_offset(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path = tmp_path / "guest.flat"
    path.write_bytes(b"\x1f\x20\x03\xd5" * 8)

    image = load_image(path, memory)

    assert (image.kind, image.entry) == ("flat binary", FLAT)
    assert image.ranges == ((FLAT, FLAT + 32),)
    assert memory.read(FLAT, 33) == b"\x1f\x20\x03\xd5" * 8 + b"\0"


def test_load_image_accepts_a_flat_binary_of_one_byte(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "guest.flat"
    path.write_bytes(b"\xd5")

    assert load_image(path, memory).kind == "flat binary"


@pytest.mark.parametrize("text_offset", [0, 0x8_0000, 0x20_0000])
def test_load_image_puts_a_linux_image_at_its_text_offset(
    tmp_path: Path, memory: GuestMemory, text_offset: int
) -> None:
    path = tmp_path / "Image"
    path.write_bytes(linux(text_offset))

    image = load_image(path, memory)

    start = RAM_BASE + text_offset
    assert (image.kind, image.entry) == ("Linux Image", start)
    assert image.ranges == ((start, start + 0x20_0000),)
    assert memory.read(start, 0x1000) == linux(text_offset)[:0x1000]


def test_load_image_puts_a_linux_image_without_size_at_the_kernel_offset(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path = tmp_path / "Image"
    path.write_bytes(linux(text_offset=0, image_size=0))

    assert load_image(path, memory).entry == FLAT


@pytest.mark.parametrize(
    ("text_offset", "image_size"),
    [(1 << 63, 0x1000), (0, 1 << 63), ((1 << 64) - 4096, (1 << 64) - 1), (0, 17 * MIB)],
)
def test_load_image_refuses_a_linux_image_that_does_not_fit(
    tmp_path: Path, memory: GuestMemory, text_offset: int, image_size: int
) -> None:
    path = tmp_path / "Image"
    path.write_bytes(linux(text_offset, image_size))

    with pytest.raises(ImageError, match=r"outside RAM \(0x80000000 to 0x81000000, 16 MiB\)"):
        load_image(path, memory)


def test_load_image_puts_the_initrd_just_below_the_device_tree(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path, initrd = tmp_path / "Image", tmp_path / "initrd"
    path.write_bytes(linux())
    initrd.write_bytes(b"cpio" * 1000)

    image = load_image(path, memory, initrd=initrd)

    assert image.dtb == RAM_BASE + 14 * MIB
    assert image.initrd == (image.dtb - 4096, image.dtb - 96)
    assert memory.read(image.initrd[0], 4000) == b"cpio" * 1000


# Files that are not images


def test_load_image_reports_a_missing_file_in_kvmtools_words(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match=r"^Unable to open kernel no/such: No such file"):
        load_image("no/such", memory)


def test_load_image_names_a_missing_initrd(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "Image"
    path.write_bytes(linux())

    with pytest.raises(ImageError, match=r"^Unable to open initrd no/such: No such file"):
        load_image(path, memory, initrd="no/such")


def test_load_image_refuses_a_directory(tmp_path: Path, memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="it is a directory"):
        load_image(tmp_path, memory)


def test_load_image_refuses_an_empty_file(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "empty"
    path.touch()

    with pytest.raises(ImageError, match="it is empty"):
        load_image(path, memory)


def test_load_image_refuses_an_unreadable_file(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0)

    with bound_by_modes(), pytest.raises(ImageError, match="Permission denied"):
        load_image(path, memory)


def test_load_image_reports_the_kernels_reason_when_open_fails(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(ImageError, match="Unable to open kernel secret: Permission denied"):
        load_image("secret", memory)


def test_load_image_refuses_a_fifo_without_waiting(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    with pytest.raises(ImageError, match="not a regular file"):
        load_image(path, memory)


def test_load_image_refuses_a_socket(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))

        with pytest.raises(ImageError, match=r"Unable to open kernel .*: it is not a regular file"):
            load_image(path, memory)


@pytest.mark.parametrize("path", ["nul\0name", "x" * 5000])
def test_load_image_refuses_an_impossible_name(memory: GuestMemory, path: str) -> None:
    with pytest.raises(ImageError, match="Unable to open kernel"):
        load_image(path, memory)


def pe(machine: int) -> bytes:
    """Return the head of an EFI program."""
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    return dos + b"PE\0\0" + struct.pack("<H", machine)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\xfd7zXZ\0", r"\(xz\) is truncated or damaged"),
        (b"BZh9", r"\(bzip2\) is truncated or damaged"),
        (b"MZ".ljust(0x202, b"\0") + b"HdrS", "a Linux kernel for x86, not AArch64"),
        (bytes(0x38) + b"RSC\x05", "a Linux kernel for RISC-V, not AArch64"),
        (bytes(0x24) + b"\x18\x28\x6f\x01", "a 32-bit Arm zImage"),
        (pe(0xAA64), "an EFI program for AArch64 without the magic of an arm64 Linux Image"),
        (pe(0x8664), "an EFI program for x86-64"),
    ],
)
def test_load_image_names_the_foreign_format_that_it_refuses(
    tmp_path: Path, memory: GuestMemory, head: bytes, message: str
) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(head + bytes(1000))

    with pytest.raises(ImageError, match=message):
        load_image(path, memory)


def test_load_image_refuses_a_linux_image_with_a_wrong_magic(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path = tmp_path / "Image"
    image = bytearray(pe(0xAA64).ljust(0x1000, b"\0"))
    image[56:60] = b"ARM!"
    path.write_bytes(image)

    with pytest.raises(ImageError, match="without the magic of an arm64 Linux Image"):
        load_image(path, memory)


def test_load_image_refuses_an_unaligned_text_offset(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "Image"
    path.write_bytes(linux(text_offset=0x8_0010))

    with pytest.raises(ImageError, match="text_offset is 0x80010, not a multiple"):
        load_image(path, memory)


def test_load_image_follows_the_start_of_ram(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(linux())

    with GuestMemory(0x1_0000_0000, 16 * MIB) as memory:
        image = load_image(path, memory)

    assert image.entry == 0x1_0000_0000
    assert image.dtb == 0x1_0000_0000 + 14 * MIB


def test_load_image_unpacks_an_image(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "vmlinuz.gz"
    path.write_bytes(gzip.compress(Elf().build()))

    image = load_image(path, memory)

    assert (image.kind, image.wrappings, image.entry) == ("ELF", ("gzip",), BASE)
    assert memory.read(BASE, len(CODE)) == CODE


# 32-bit images


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(100), "zImage"),
        (b"\x00\x00\xa0\xe1" * 40, "flat binary"),
    ],
)
def test_load_image_puts_a_32_bit_image_at_its_kernel_offset(
    tmp_path: Path, memory: GuestMemory, content: bytes, kind: str
) -> None:
    path = tmp_path / "zImage"
    path.write_bytes(content)

    image = load_image(path, memory, aarch32=True)

    assert (image.kind, image.entry) == (kind, RAM_BASE + 0x8000)
    assert memory.read(image.entry, len(content)) == content


def zimage(size: int, extent: tuple[int, int]) -> bytes:
    """Return the head of a zImage with an EFI stub: MZ, the magic, its start and end."""
    head = b"MZ\xa0\xe1".ljust(0x24, b"\0") + b"\x18\x28\x6f\x01" + struct.pack("<II", *extent)
    return head.ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + pe32(size - 0x40)


def pe32(size: int) -> bytes:
    """Return a PE header for 32-bit Arm."""
    return (b"PE\0\0" + struct.pack("<HH", 0x1C2, 0)).ljust(size, b"\0")


def test_load_image_takes_a_zimage_with_an_efi_stub(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "zImage"
    path.write_bytes(zimage(0x200, (0, 0x200)))

    assert load_image(path, memory, aarch32=True).kind == "zImage"
    with pytest.raises(ImageError, match="is a 32-bit Arm zImage") as caught:
        load_image(path, memory)
    assert caught.value.hint == "use `cpu.aarch32`=True"


@pytest.mark.parametrize("extent", [(0, 0x201), (0x100, 0x400)])
def test_load_image_refuses_a_truncated_zimage(
    tmp_path: Path, memory: GuestMemory, extent: tuple[int, int]
) -> None:
    path = tmp_path / "zImage"
    path.write_bytes(zimage(0x200, extent))

    with pytest.raises(ImageError, match="is truncated: its header says"):
        load_image(path, memory, aarch32=True)


@pytest.mark.parametrize(
    ("content", "what"), [(linux(), "an arm64 Linux Image"), (Elf().build(), "an ELF")]
)
def test_load_image_refuses_a_64_bit_image_for_aarch32(
    tmp_path: Path, memory: GuestMemory, content: bytes, what: str
) -> None:
    path = tmp_path / "Image"
    path.write_bytes(content)

    with pytest.raises(ImageError, match=f"is {what}; with `cpu.aarch32` only a zImage"):
        load_image(path, memory, aarch32=True)


def test_load_image_refuses_an_image_larger_than_ram_without_reading_it(
    tmp_path: Path, memory: GuestMemory
) -> None:
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, 1 << 40)

    with pytest.raises(
        ImageError, match="larger than the guest's RAM, and begins with z"
    ) as caught:
        load_image(path, memory)

    assert caught.value.hint == "a disk: give it with `devices.disk`"


def test_load_image_hints_at_enough_ram(tmp_path: Path, memory: GuestMemory) -> None:
    path = tmp_path / "large"
    path.write_bytes(CODE)
    os.truncate(path, 20 * MIB)
    with pytest.raises(ImageError) as caught:
        load_image(path, memory)

    assert caught.value.hint == "use `memory`=24M or more"
    with GuestMemory(RAM_BASE, 24 * MIB) as enough:
        load_image(path, enough)


def test_load_image_refuses_an_initrd_larger_than_ram(tmp_path: Path, memory: GuestMemory) -> None:
    path, initrd = tmp_path / "Image", tmp_path / "initrd"
    path.write_bytes(linux())
    initrd.touch()
    os.truncate(initrd, 1 << 40)

    with pytest.raises(
        ImageError, match=r"no room for 64 KiB of device tree and 1048576.0 MiB of initrd"
    ):
        load_image(path, memory, initrd=initrd)


# The places of device tree and initrd


@pytest.mark.parametrize(
    ("ram", "dtb"),
    [(4, 2), (16, 14), (255, 254), (256, 254), (257, 254), (1024, 254)],
)
def test_place_dtb_uses_the_end_of_the_first_256_mib(ram: int, dtb: int) -> None:
    with GuestMemory(RAM_BASE, ram * MIB) as memory:
        address, _ = place_dtb([(FLAT, FLAT + 0x1000)], 0, memory)

    assert address == RAM_BASE + dtb * MIB


def test_place_dtb_uses_the_space_before_the_image_in_tiny_ram() -> None:
    with GuestMemory(RAM_BASE, 1 * MIB) as memory:
        address, _ = place_dtb([(FLAT, FLAT + 0x1000)], 0, memory)

    assert address == RAM_BASE


def test_place_dtb_uses_the_end_of_ram_behind_a_large_image() -> None:
    with GuestMemory(RAM_BASE, 512 * MIB) as memory:
        address, initrd = place_dtb([(FLAT, FLAT + 300 * MIB)], MIB, memory)

    assert address == RAM_BASE + 510 * MIB
    assert initrd == (address - MIB, address)


@given(
    ram=st.integers(1, 400),
    start=st.integers(0, 400 * 256),
    length=st.integers(1, 400 * 256),
    initrd_size=st.integers(0, 400 * MIB),
)
def test_place_dtb_never_overlaps_and_stays_in_ram(
    ram: int, start: int, length: int, initrd_size: int
) -> None:
    image = (RAM_BASE + start * 4096, RAM_BASE + (start + length) * 4096)
    with GuestMemory(RAM_BASE, ram * MIB) as memory:
        try:
            dtb, initrd = place_dtb([image], initrd_size, memory)
        except ImageError as error:
            assert error.hint is not None
            return

    tree = (dtb, dtb + layout.DTB_SIZE)
    assert dtb % layout.DTB_ALIGN == 0
    assert initrd[1] - initrd[0] == initrd_size
    for one, other in ((image, tree), (image, initrd), (tree, initrd)):
        assert one[1] <= other[0] or other[1] <= one[0]
    for first, last in (tree, initrd):
        assert first >= RAM_BASE
        assert last <= RAM_BASE + ram * MIB


# Mutated images

VALID = {
    "Image": linux(),
    "ELF": Elf().build(),
    "gzip": gzip.compress(linux(), 1),
    "zboot": zboot(b"gzip", gzip.compress(linux(), 1)),
    "zboot-zstd": zboot(b"zstd", zstd_compress(linux())),
    "zstd": zstd_compress(linux()),
}
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 255), st.integers(0, 255)),
        st.tuples(st.just("word"), st.integers(0, 40), st.integers(0, (1 << 64) - 1)),
        st.tuples(st.just("cut"), st.integers(0, 6000), st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(image: bytes, mutations: list[tuple[str, int, int]]) -> bytes:
    """Change bytes and words of an image's head, or cut its end off."""
    data = bytearray(image)
    for kind, where, value in mutations:
        if kind == "cut":
            del data[where:]
        elif kind == "set" and where < len(data):
            data[where] = value
        elif kind == "word" and 8 * where + 8 <= len(data):
            struct.pack_into("<Q", data, 8 * where, value)
    return bytes(data)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(VALID)), mutations=MUTATIONS, aarch32=st.booleans())
def test_load_image_refuses_a_mutated_image_or_loads_it_inside_ram(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    mutations: list[tuple[str, int, int]],
    aarch32: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(mutated(VALID[name], mutations))

    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        try:
            image = load_image(path, memory, aarch32=aarch32)
        except ImageError as error:
            assert error.message
            return

    for start, end in image.ranges:
        assert RAM_BASE <= start <= end <= RAM_BASE + 16 * MIB
    assert any(start <= image.entry < end for start, end in image.ranges)
