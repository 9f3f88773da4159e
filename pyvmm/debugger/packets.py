"""The frames of gdb's remote serial protocol: packets, acknowledgements, interrupts.

A packet is ``$data#xx``: xx is the sum of the data's bytes modulo 256, in hexadecimal. In the data
``}`` escapes the next byte, which is XORed with 0x20.

Source: the gdb manual, "Debugging with GDB", appendix E "GDB Remote Serial Protocol".
"""

from __future__ import annotations

from collections.abc import Iterator

MOST = 1 << 16  # bytes of a packet's data, in both directions: qSupported's PacketSize
INTERRUPT = b"\x03"  # outside packets: stop the guest

START, END, ESCAPE = b"$#}"
_ESCAPED = frozenset(b"$#}*")


class Framer:
    """A parser of a client's bytes. It keeps at most one incomplete packet.

    ``feed`` yields the data of each packet, INTERRUPT, or None for a packet that was damaged or too
    long. The acknowledgements + and - are dropped: nothing is lost on a stream socket.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipping = False  # the rest of a packet that is too long

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """Add bytes, and yield what they complete."""
        self._buffer += data
        while self._buffer:
            if self._skipping and not self._skip():
                return
            if not self._buffer or self._buffer[0] != START:
                yield from self._outside()
                continue
            end = self._buffer.find(END)
            if end < 0 or len(self._buffer) < end + 3:
                if len(self._buffer) <= 2 * MOST:
                    return
                self._skipping = True
                yield None
                continue
            body, total = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
            del self._buffer[: end + 3]
            yield _unescaped(body) if _is_sum(body, total) and len(body) <= 2 * MOST else None

    def _outside(self) -> Iterator[bytes]:
        """Take what is before the next packet: an interrupt, acknowledgements, noise."""
        start = self._buffer.find(START)
        before = bytes(self._buffer if start < 0 else self._buffer[:start])
        del self._buffer[: len(before)]
        if INTERRUPT in before:
            yield INTERRUPT

    def _skip(self) -> bool:
        """Drop bytes up to the end of a packet; return whether the end has come."""
        end = self._buffer.find(END)
        del self._buffer[: len(self._buffer) if end < 0 else end + 1]
        self._skipping = end < 0
        return end >= 0


def pack(data: bytes) -> bytes:
    """Return a packet with that data."""
    body = bytearray()
    for byte in data:
        if byte in _ESCAPED:
            body += bytes((ESCAPE, byte ^ 0x20))
        else:
            body.append(byte)
    return b"$%b#%02x" % (bytes(body), sum(body) & 0xFF)


def _unescaped(body: bytes) -> bytes:
    if ESCAPE not in body:
        return body
    first, *others = body.split(b"}")
    parts = [first]
    for part in others:
        if part:
            parts.append(bytes((part[0] ^ 0x20,)) + part[1:])
    return b"".join(parts)


def _is_sum(body: bytes, text: bytes) -> bool:
    try:
        return int(text, 16) == sum(body) & 0xFF
    except ValueError:
        return False
