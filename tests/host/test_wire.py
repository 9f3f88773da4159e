"""The command channel's frames, for every split of the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.host.wire import (
    HEADER,
    MAX_PAYLOAD,
    SIZES,
    Frame,
    FrameReader,
    Synchroniser,
    WireError,
    pack,
)

FRAMES = st.lists(
    st.sampled_from(Frame).flatmap(
        lambda kind: st.tuples(
            st.just(kind), st.binary(min_size=SIZES.get(kind, 0), max_size=SIZES.get(kind, 300))
        )
    ),
    max_size=8,
)
CUTS = st.lists(st.integers(1, 50), min_size=1, max_size=20)


def pieces(data: bytes, lengths: list[int]) -> list[bytes]:
    """Cut data into pieces of these lengths, repeatedly."""
    found = []
    while data:
        for length in lengths:
            found.append(data[:length])
            data = data[length:]
    return found


@given(FRAMES, CUTS)
def test_reader_returns_the_packed_frames_for_every_split(
    frames: list[tuple[Frame, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(pack(kind, payload) for kind, payload in frames)
    reader = FrameReader()

    read = [frame for piece in pieces(stream, cuts) for frame in reader.feed(piece)]

    assert read == frames


def test_pack_splits_a_long_payload() -> None:
    payload = bytes(range(256)) * 1000

    frames = list(FrameReader().feed(pack(Frame.OUT, payload)))

    assert {kind for kind, _ in frames} == {Frame.OUT}
    assert max(len(piece) for _, piece in frames) == MAX_PAYLOAD
    assert b"".join(piece for _, piece in frames) == payload


def test_reader_waits_for_the_rest_of_a_frame() -> None:
    reader = FrameReader()

    assert list(reader.feed(pack(Frame.ERR, b"words")[:-1])) == []
    assert list(reader.feed(b"s")) == [(Frame.ERR, b"words")]


@pytest.mark.parametrize(
    "header",
    [HEADER.pack(99, 0), HEADER.pack(0, 5), HEADER.pack(Frame.OUT, MAX_PAYLOAD + 1)],
    ids=["unknown type", "no type", "too long"],
)
def test_reader_returns_whole_frames_before_the_error_of_a_damaged_stream(header: bytes) -> None:
    frames = FrameReader().feed(pack(Frame.OUT, b"fine") + header)

    assert next(frames) == (Frame.OUT, b"fine")
    with pytest.raises(WireError):
        next(frames)


@given(st.binary(max_size=100), st.binary(max_size=100), CUTS)
def test_synchroniser_returns_the_bytes_after_the_marker_for_every_split(
    stale: bytes, rest: bytes, cuts: list[int]
) -> None:
    marker = b"\x00\xffMARK\x01" + b"nonce"
    finder = Synchroniser(marker)
    found: bytes | None = None

    for piece in pieces(stale + marker + rest, cuts):
        found = finder.feed(piece) if found is None else found + piece

    before, _, after = (stale + marker + rest).partition(marker)
    assert found == after
    assert before + marker + after == stale + marker + rest


@pytest.mark.parametrize("split", range(1, 12))
def test_synchroniser_finds_a_marker_split_anywhere_after_a_false_start(split: int) -> None:
    marker = b"\x00\xffMARK\x01nonce"
    stream = marker[:-1] + marker + b"rest"  # almost the marker, then the marker
    finder = Synchroniser(marker)
    at = len(marker) - 1 + split

    assert finder.feed(stream[:at]) is None
    assert finder.feed(stream[at:]) == b"rest"


def test_synchroniser_keeps_no_discarded_bytes() -> None:
    finder = Synchroniser(b"marker")

    for _ in range(1000):
        finder.feed(b"x" * 1000)

    assert len(finder._buffer) < len(b"marker")


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("more", [-1, 1])
def test_reader_refuses_a_payload_of_another_size(kind: Frame, more: int) -> None:
    with pytest.raises(WireError, match=f"frame of type {kind:d}"):
        list(FrameReader().feed(pack(kind, bytes(SIZES[kind] + more))))
