"""Headers of arm64 Linux Images."""

from __future__ import annotations

import struct

import pytest

from pyvmm.arm64.idregs import IdAa64Mmfr0
from pyvmm.boot.linux import Flags, PageSize, check_cpu, read_header
from pyvmm.errors import HostError, ImageError

ONLY_4_KIB = IdAa64Mmfr0.of(TGran4=0, TGran64=0xF, TGran16=0)
ONLY_64_KIB = IdAa64Mmfr0.of(TGran4=0xF, TGran64=0, TGran16=0)
EVERYTHING = IdAa64Mmfr0.of(TGran4=1, TGran64=0, TGran16=2, BigEnd=1)


def head(text_offset: int, image_size: int, flags: int) -> bytes:
    return struct.pack("<8xQQQ24x4s4x", text_offset, image_size, flags, b"ARM\x64")


def test_read_header_reads_every_field() -> None:
    read = read_header(head(0x8_0000, 0x123_0000, 0b1010), "Image")

    assert (read.text_offset, read.image_size) == (0x8_0000, 0x123_0000)
    assert read.flags.PAGE_SIZE is PageSize.KIB_4
    assert read.flags.PLACEMENT
    assert not read.flags.BIG_ENDIAN


def test_read_header_uses_the_old_offset_without_a_size() -> None:
    assert read_header(head(0, 0, 0), "Image").text_offset == 0x8_0000


@pytest.mark.parametrize("text_offset", [1, 0x800, 0x8_0004, (1 << 64) - 1])
def test_read_header_refuses_an_unaligned_text_offset(text_offset: int) -> None:
    with pytest.raises(ImageError, match=f"text_offset is {text_offset:#x}"):
        read_header(head(text_offset, 0x1000, 0), "Image")


@pytest.mark.parametrize(
    ("size", "cpu"),
    [
        (PageSize.UNSPECIFIED, ONLY_4_KIB),
        (PageSize.KIB_4, ONLY_4_KIB),
        (PageSize.KIB_64, ONLY_64_KIB),
        (PageSize.KIB_16, EVERYTHING),
    ],
)
def test_check_cpu_accepts_a_supported_page_size(size: PageSize, cpu: int) -> None:
    check_cpu(Flags.of(PAGE_SIZE=size), cpu, "Image")


@pytest.mark.parametrize(
    ("size", "cpu", "words"),
    [
        (PageSize.KIB_16, ONLY_4_KIB, "for pages of 16 KiB, this CPU has 4 KiB"),
        (PageSize.KIB_64, ONLY_4_KIB, "for pages of 64 KiB, this CPU has 4 KiB"),
        (PageSize.KIB_4, ONLY_64_KIB, "for pages of 4 KiB, this CPU has 64 KiB"),
    ],
)
def test_check_cpu_refuses_an_unsupported_page_size(size: PageSize, cpu: int, words: str) -> None:
    with pytest.raises(HostError, match=words):
        check_cpu(Flags.of(PAGE_SIZE=size), cpu, "Image")


def test_check_cpu_accepts_big_endian_only_where_supported() -> None:
    check_cpu(Flags.of(BIG_ENDIAN=1), EVERYTHING, "Image")

    with pytest.raises(HostError, match="big-endian"):
        check_cpu(Flags.of(BIG_ENDIAN=1), ONLY_4_KIB, "Image")
