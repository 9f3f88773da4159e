"""Packed files of several members, frames and streams; the formats' own programs are the judges."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot import lz4, lzo
from pyvmm.boot.packings import Damaged, packing_of, unpack
from pyvmm.boot.wrapping import unwrap
from pyvmm.errors import HostError, ImageError
from pyvmm.layout import MIB
from tests.boot.formats import run
from tests.boot.judges import library_of
from tests.boot.packing import zboot, zstd_compress
from tests.conftest import tool

Pack = Callable[[bytes], bytes]
IMAGE = bytes(range(256)) * 2000
HERE = Path()


@pytest.fixture(autouse=True, scope="module")
def _libraries() -> Iterator[None]:
    """Let pyvmm find the libraries of the judges, where this machine lacks them."""
    with pytest.MonkeyPatch.context() as patch:
        for module, program in ((lz4, "lz4"), (lzo, "lzop")):
            patch.setattr(module, "LIBRARY", library_of(tool(program), module.LIBRARY))
        yield


def lz4_frame(data: bytes) -> bytes:
    return run(HERE, "lz4", "-q", "-c", "-", given=data)


def lz4_legacy(data: bytes) -> bytes:
    return run(HERE, "lz4", "-q", "-l", "-c", "-", given=data)


def lzop(data: bytes) -> bytes:
    return run(HERE, "lzop", "-q", "-c", given=data)


def lzma_alone(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


PACK: dict[str, Pack] = {
    "gzip": gzip.compress,
    "zstd": zstd_compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "lz4": lz4_frame,
    "lzo": lzop,
}
EVERY: tuple[tuple[str, Pack], ...] = (
    *PACK.items(), ("lzma", lzma_alone), ("lz4", lz4_legacy)
)  # fmt: skip
SKIPPABLE = b"\x50\x2a\x4d\x18\x08\0\0\0pyvmmhdr"


def unpacked(data: bytes, kind: str) -> bytes:
    assert packing_of(io.BytesIO(data)) == kind
    return b"".join(unpack(io.BytesIO(data), kind))


def unwrapped(data: bytes) -> tuple[bytes, tuple[str, ...], list[str]]:
    notes: list[str] = []
    file, wrappings = unwrap(io.BytesIO(data), "Image", 64 * MIB, notes.append)
    file.seek(0)
    return file.read(), wrappings, notes


@pytest.mark.parametrize(("kind", "pack"), EVERY)
def test_unwrap_unpacks_each_format(kind: str, pack: Pack) -> None:
    assert unwrapped(pack(IMAGE)) == (IMAGE, (kind,), [])


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize(("kind", "pack"), EVERY)
def test_unpack_returns_the_whole_file_when_it_fills_its_chunks(
    kind: str, pack: Pack, size: int
) -> None:
    assert unpacked(pack(bytes(size)), kind) == bytes(size)


def test_unpack_unpacks_several_blocks_of_legacy_lz4() -> None:
    data = os.urandom(1 << 10) * (17 << 10)  # a block has 8 MiB

    assert unpacked(lz4_legacy(data), "lz4") == data


@pytest.mark.parametrize("cut", [20, 200, -1])
@pytest.mark.parametrize(("kind", "pack"), EVERY)
def test_unpack_refuses_a_truncated_file(kind: str, pack: Pack, cut: int) -> None:
    packed = pack(os.urandom(5000))
    if cut == -1 and pack is lz4_legacy:
        packed = packed[:-1]

    with pytest.raises(Damaged):
        unpacked(packed[:cut], kind)


@pytest.mark.parametrize(
    ("kind", "pack"),
    [
        ("gzip", gzip.compress), ("zstd", zstd_compress), ("zstd22", zstd_compress),
        ("xzkern", lzma.compress), ("lzma", lzma_alone), ("lz4", lz4_legacy), ("lzo", lzop),
    ],
)  # fmt: skip
def test_unwrap_unpacks_each_kind_of_zboot(kind: str, pack: Pack) -> None:
    # Linux appends the unpacked size to what does not have it
    payload = pack(IMAGE) + len(IMAGE).to_bytes(4, "little")

    image, wrappings, notes = unwrapped(zboot(kind.encode(), payload))

    assert (image, notes) == (IMAGE, [])
    assert wrappings[0].startswith("EFI zboot, ")


# Several members, frames or streams


@pytest.mark.parametrize(
    ("kind", "pack"), [*PACK.items(), ("lz4", lz4_legacy)], ids=[*PACK, "lz4 -l"]
)
def test_unwrap_unpacks_every_member(kind: str, pack: Pack) -> None:
    parts = [IMAGE[:1000], b"\x01", IMAGE]

    packed = b"".join(pack(part) for part in parts)

    assert unwrapped(packed) == (b"".join(parts), (kind,), [])


def test_unwrap_unpacks_what_pzstd_made(tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(os.urandom(3 << 20) + IMAGE)
    run(tmp_path, "pzstd", "-q", "-p", "4", "-1", "Image", "-o", "Image.zst")

    image, kinds, notes = unwrapped((tmp_path / "Image.zst").read_bytes())

    assert (image, kinds, notes) == ((tmp_path / "Image").read_bytes(), ("zstd",), [])


@pytest.mark.parametrize(("kind", "pack"), [("zstd", zstd_compress), ("lz4", lz4_frame)])
def test_unwrap_skips_skippable_frames(kind: str, pack: Pack) -> None:
    packed = SKIPPABLE * 3 + pack(IMAGE) + SKIPPABLE + pack(b"end")

    assert unwrapped(packed) == (IMAGE + b"end", (kind,), [])


def test_unwrap_takes_a_file_of_skippable_frames_as_it_is() -> None:
    assert unwrapped(SKIPPABLE) == (SKIPPABLE, (), [])


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("zeros", [1, 512, 10_000])
def test_unwrap_ignores_zeros_behind_a_packed_image(kind: str, zeros: int) -> None:
    assert unwrapped(PACK[kind](IMAGE) + bytes(zeros)) == (IMAGE, (kind,), [])


@pytest.mark.parametrize("kind", PACK)
def test_unwrap_mentions_other_bytes_behind_a_packed_image(kind: str) -> None:
    image, _, notes = unwrapped(PACK[kind](IMAGE) + bytes(100) + b"signature")

    assert image == IMAGE
    assert notes == [f"Image: the last 9 bytes are not {kind} data, and are not used"]


@pytest.mark.parametrize("kind", PACK)
def test_unwrap_refuses_a_damaged_second_member(kind: str) -> None:
    packed = PACK[kind](IMAGE) + PACK[kind](os.urandom(5000))[:-100]

    with pytest.raises(ImageError, match="is truncated or damaged"):
        unwrapped(packed)


def test_unwrap_stops_a_bomb_of_many_members_at_the_limit() -> None:
    bomb = gzip.compress(bytes(1 << 20)) * 100

    with pytest.raises(ImageError, match="unpacks to more than the 64 MiB of RAM"):
        unwrapped(bomb)


class CountedFile(io.BytesIO):
    """A file that counts the bytes that its reader asks for."""

    asked = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.asked += size or 0
        return super().read(size)


def test_unpack_takes_linear_time_for_empty_members() -> None:
    packed = CountedFile(gzip.compress(b"") * 20_000 + gzip.compress(b"end"))

    assert b"".join(unpack(packed, "gzip")) == b"end"
    assert packed.asked < 20_000 * 10_000


JUDGES = {
    "gzip": ("gzip", "-dc"), "zstd": ("zstd", "-dc"), "xz": ("xz", "-dc"),
    "bzip2": ("bzip2", "-dc"), "lz4": ("lz4", "-dc"), "lzo": ("lzop", "-dc"),
}  # fmt: skip
FILLING = {
    "gzip": b"\0",
    "xz": bytes(4),
    "zstd": SKIPPABLE,
    "lz4": SKIPPABLE,
    "bzip2": b"",
    "lzo": b"",
}


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(PACK)),
    parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=5),
    copies=st.integers(1, 300),
    filling=st.integers(0, 3),
)
def test_unpack_agrees_with_the_formats_program(
    kind: str, parts: list[bytes], copies: int, filling: int
) -> None:
    # Between members only skippable frames and xz's padding are legal.
    between = FILLING[kind] * filling if kind != "gzip" else b""
    packed = between.join(PACK[kind](part * copies) for part in parts) + FILLING[kind] * filling

    program, *options = JUDGES[kind]
    judge = subprocess.run([tool(program), *options], input=packed, capture_output=True)

    assert judge.returncode in (0, 2), judge.stderr  # lzop warns of several files
    assert unpacked(packed, kind) == judge.stdout == b"".join(part * copies for part in parts)


@cache
def valid(index: int) -> tuple[str, bytes]:
    kind, pack = EVERY[index]
    return kind, pack(IMAGE[:3000]) + pack(b"end")


@settings(max_examples=400)
@given(
    index=st.integers(0, len(EVERY) - 1),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 400),
)
def test_unpack_reports_damage_or_unpacks(
    index: int, changes: list[tuple[int, int]], cut: int
) -> None:
    kind, whole = valid(index)
    data = bytearray(whole)
    for where, value in changes:
        data[where % len(data)] = value
    if cut % 3:
        del data[cut:]

    with contextlib.suppress(Damaged):
        for chunk in unpack(io.BytesIO(bytes(data)), kind):
            assert len(chunk) <= 64 * MIB


# Libraries that a machine may lack


@pytest.mark.parametrize(
    ("library", "pack", "kind", "program"),
    [
        (lz4, lz4_frame, "lz4", "unlz4"),
        (lz4, lz4_legacy, "lz4", "unlz4"),
        (lzo, lzop, "lzo", "lzop -d"),
    ],
)
def test_unwrap_names_a_library_that_the_machine_lacks(
    monkeypatch: pytest.MonkeyPatch, library: ModuleType, pack: Pack, kind: str, program: str
) -> None:
    monkeypatch.setattr(library, "LIBRARY", "libnone.so.1")

    with pytest.raises(HostError, match=rf"{kind} needs libnone\.so\.1") as caught:
        unwrapped(pack(IMAGE))

    assert program in (caught.value.hint or "")


def test_unwrap_refuses_lzo_with_a_wrong_checksum() -> None:
    packed = bytearray(lzop(IMAGE))
    packed[-20] ^= 1

    with pytest.raises(ImageError, match=r"a block (is damaged|has a wrong checksum)"):
        unwrapped(bytes(packed))


def test_unwrap_names_a_module_that_python_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzma", None)

    with pytest.raises(HostError, match="xz needs Python's module lzma") as caught:
        unwrapped(b"\xfd7zXZ\0" + bytes(100))

    assert caught.value.hint == "unpack the file with unxz"
