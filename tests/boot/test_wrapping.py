"""Packed images, and damaged ones."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import zstd
from pyvmm.boot.wrapping import unwrap
from pyvmm.errors import HostError, ImageError
from pyvmm.layout import MIB
from tests.boot.packing import zboot, zstd_compress
from tests.conftest import tool

IMAGE = bytes(range(256)) * 2000
LIMIT = 16 * MIB
PACK = {"gzip": gzip.compress, "zstd": zstd_compress}


def unwrapped(packed: bytes, limit: int = LIMIT) -> tuple[bytes, tuple[str, ...]]:
    notes: list[str] = []
    file, wrappings = unwrap(io.BytesIO(packed), "Image", limit, notes.append)
    assert not notes
    file.seek(0)
    return file.read(), wrappings


def test_unwrap_returns_an_unpacked_image_unchanged() -> None:
    assert unwrapped(IMAGE) == (IMAGE, ())


@pytest.mark.parametrize("kind", PACK)
def test_unwrap_unpacks_an_image(kind: str) -> None:
    assert unwrapped(PACK[kind](IMAGE)) == (IMAGE, (kind,))


@pytest.mark.parametrize("kind", PACK)
def test_unwrap_unpacks_a_zboot_payload(kind: str) -> None:
    image = zboot(kind.encode(), PACK[kind](IMAGE) + b"size")

    assert unwrapped(image) == (IMAGE, (f"EFI zboot, {kind}",))


def test_unwrap_knows_the_zstd_name_of_older_kernels() -> None:
    assert unwrapped(zboot(b"zstd22", zstd_compress(IMAGE)))[0] == IMAGE


def test_unwrap_unpacks_two_layers_and_refuses_three() -> None:
    twice = gzip.compress(zboot(b"gzip", gzip.compress(IMAGE)))

    assert unwrapped(twice) == (IMAGE, ("gzip", "EFI zboot, gzip"))
    with pytest.raises(ImageError, match="packed more than 2 times"):
        unwrapped(gzip.compress(twice))


@given(data=st.binary(min_size=1, max_size=5000), copies=st.integers(1, 2000))
@pytest.mark.parametrize("kind", PACK)
def test_unwrap_inverts_packing(kind: str, data: bytes, copies: int) -> None:
    image = b"\0" + data * copies  # no format's magic starts with that

    assert unwrapped(PACK[kind](image))[0] == image


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("kind", PACK)
def test_unwrap_returns_all_of_an_image_of_whole_chunks(kind: str, size: int) -> None:
    assert len(unwrapped(PACK[kind](bytes(size)))[0]) == size


@pytest.mark.parametrize("kind", PACK)
def test_unwrap_stops_a_bomb_at_the_limit(kind: str) -> None:
    bomb = PACK[kind](bytes(64 * MIB))

    with pytest.raises(ImageError, match=r"unpacks to more than the 16 MiB of RAM"):
        unwrapped(bomb)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("cut", [3, 20, 200, -1])
def test_unwrap_refuses_a_truncated_image(kind: str, cut: int) -> None:
    packed = PACK[kind](os.urandom(5000))

    with pytest.raises(ImageError, match="truncated or damaged"):
        unwrapped(packed[:cut] if cut != 3 else packed[:4])


def test_unwrap_refuses_a_wrong_checksum() -> None:
    packed = bytearray(gzip.compress(IMAGE))
    packed[-6] ^= 1

    with pytest.raises(ImageError, match="incorrect data check"):
        unwrapped(bytes(packed))


def test_unwrap_names_a_damaged_zstd_image() -> None:
    packed = bytearray(zstd_compress(os.urandom(5000)))
    packed[5] ^= 0xFF

    with pytest.raises(ImageError, match=r"Image \(zstd\) is truncated or damaged"):
        unwrapped(bytes(packed))


def test_unwrap_refuses_an_empty_image() -> None:
    with pytest.raises(ImageError, match="is empty"):
        unwrapped(gzip.compress(b""))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (zboot(b"rot13", b"x"), "packed with 'rot13'; pyvmm unpacks gzip, zstd, xz, lzma, bzip2, "),
        (zboot(b"\xff\xfe", b"x"), "pyvmm unpacks gzip, zstd"),
        (zboot(b"gzip", b"x", offset=0), "0x1 bytes of payload at 0x0, the file has 0x1001"),
        (zboot(b"gzip", b"x", offset=0xFFFF_FFFF), "payload at 0xffffffff"),
        (zboot(b"gzip", b"x", size=0xFFFF_FFFF), "0xffffffff bytes of payload"),
        (zboot(b"gzip", gzip.compress(IMAGE)[:50]), "it ends too early"),
        (zboot(b"gzip", b"")[:40], "truncated: an EFI zboot image of 40 bytes"),
        (zboot(b"zstd", gzip.compress(IMAGE)), "truncated or damaged: Unknown frame"),
        (b"\x04\x22\x4d\x18" + bytes(100), r"\(lz4\) is truncated or damaged"),
    ],
)
def test_unwrap_names_the_format_that_it_refuses(image: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        unwrapped(image)


def test_unwrap_hints_at_libzstd_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstd, "LIBRARY", "libnone.so.1")

    with pytest.raises(HostError) as caught:
        unwrapped(zstd_compress(IMAGE))

    assert "libzstd1" in (caught.value.hint or "")


def test_unwrap_accepts_the_gzip_programs_output(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(IMAGE)
    subprocess.run(["gzip", "-9", path], check=True)

    assert unwrapped((tmp_path / "Image.gz").read_bytes())[0] == IMAGE


@given(noise=st.binary(max_size=300), magic=st.sampled_from([b"\x1f\x8b\x08", zstd.MAGIC]))
def test_unwrap_refuses_noise_behind_a_magic(noise: bytes, magic: bytes) -> None:
    """Some noise is a frame of a few bytes: then the format's own program reads the same."""
    packed = magic + noise + zlib.crc32(noise).to_bytes(4, "big")
    try:
        content, *_ = unwrapped(packed, limit=MIB)
    except ImageError:
        return
    program = "zstd" if magic == zstd.MAGIC else "gzip"
    done = subprocess.run([tool(program), "-dc"], input=packed, capture_output=True, check=True)
    assert content == done.stdout
