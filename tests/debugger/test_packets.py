"""The frames of gdb's protocol, whole, in pieces, and damaged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.debugger.packets import INTERRUPT, MOST, Framer, pack


def test_packet_has_the_checksum_of_the_manuals_example() -> None:
    assert pack(b"OK") == b"$OK#9a"


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 7))
def test_framer_returns_what_was_packed_in_any_pieces(sent: list[bytes], size: int) -> None:
    stream = b"+".join(map(pack, sent))
    framer = Framer()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]

    assert [packet for piece in pieces for packet in framer.feed(piece)] == sent


def test_framer_reports_an_interrupt_between_packets() -> None:
    assert list(Framer().feed(b"+\x03" + pack(b"g"))) == [INTERRUPT, b"g"]


def test_interrupt_within_a_packet_is_data() -> None:
    assert list(Framer().feed(pack(b"X1,1:\x03"))) == [b"X1,1:\x03"]


def test_framer_reports_a_wrong_checksum() -> None:
    assert list(Framer().feed(b"$g#00$g#67")) == [None, b"g"]
    assert list(Framer().feed(b"$g#zz$g#67")) == [None, b"g"]


def test_framer_drops_a_packet_that_is_too_long_and_goes_on() -> None:
    framer = Framer()

    assert list(framer.feed(b"$" + b"a" * (2 * MOST + 10))) == [None]
    assert list(framer.feed(b"a" * (4 * MOST))) == []
    assert len(framer._buffer) <= MOST
    assert list(framer.feed(b"a#00" + pack(b"g"))) == [b"g"]


@given(st.binary(max_size=500), st.integers(1, 50))
def test_framer_takes_any_bytes(data: bytes, size: int) -> None:
    framer = Framer()

    for at in range(0, len(data), size):
        assert all(isinstance(one, bytes | None) for one in framer.feed(data[at : at + size]))
