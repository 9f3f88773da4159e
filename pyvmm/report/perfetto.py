"""Perfetto traces: the messages of its protocol buffers that a trace of exits needs.

A file is a sequence of TracePackets. Repeated names are interned: written once, then a number.

Source: Perfetto, protos/perfetto/trace/: trace.proto, trace_packet.proto, interned_data.proto,
track_event/{track_event,track_descriptor,thread_descriptor,process_descriptor,
debug_annotation}.proto. Encoding: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Field = tuple[int, int | bytes | str]  # a field's number and its value

VARINT, LENGTH = 0, 2  # wire types

TRACE_PACKET: Final = 1  # Trace
TIMESTAMP, SEQUENCE, TRACK_EVENT, INTERNED, FLAGS, DESCRIPTOR = 8, 10, 11, 12, 13, 60  # TracePacket
INCREMENTAL_STATE_CLEARED, NEEDS_INCREMENTAL_STATE = 1, 2  # TracePacket.SequenceFlags
UUID, NAME, PROCESS, THREAD, PARENT, COUNTER = 1, 2, 3, 4, 5, 8  # TrackDescriptor
PID, PROCESS_NAME = 1, 6  # ProcessDescriptor
THREAD_PID, TID, THREAD_NAME = 1, 2, 5  # ThreadDescriptor
CATEGORY_IIDS, ANNOTATIONS, TYPE, NAME_IID, TRACK, COUNTER_VALUE = 3, 4, 9, 10, 11, 30  # TrackEvent
SLICE_BEGIN, SLICE_END, COUNT = 1, 2, 4  # TrackEvent.Type
ANNOTATION_NAME_IID, ANNOTATION_UINT, ANNOTATION_POINTER = 1, 3, 7  # DebugAnnotation
EVENT_NAMES, ANNOTATION_NAMES = 2, 3  # InternedData
IID, INTERNED_NAME = 1, 2  # EventName, DebugAnnotationName


def varint(number: int) -> bytes:
    """Encode a number as bytes with seven bits each, the lowest bits first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def message(*fields: Field) -> bytes:
    """Encode a message of those fields."""
    encoded = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            encoded += varint(number << 3 | VARINT) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            encoded += varint(number << 3 | LENGTH) + varint(len(data)) + data
    return bytes(encoded)


def packet(*fields: Field) -> bytes:
    """Encode a TracePacket of a file."""
    return message((TRACE_PACKET, message(*fields)))


class Sequence:
    """The packets of one track of slices, written by one thread; any thread may ``take`` them.

    Times are in ns of CLOCK_BOOTTIME, Perfetto's own clock.
    """

    def __init__(self, number: int, track: int, descriptor: Iterable[Field]) -> None:
        self._number = number
        self._track = track
        self._names: dict[str, int] = {}
        self._packets = bytearray(
            packet((SEQUENCE, number), (FLAGS, INCREMENTAL_STATE_CLEARED))
            + packet((SEQUENCE, number), (DESCRIPTOR, message((UUID, track), *descriptor)))
        )

    def slice(self, name: str, began_ns: int, ended_ns: int, facts: dict[str, int]) -> None:
        """Add a slice from ``began_ns`` to ``ended_ns``; ``facts`` are shown in hexadecimal."""
        new = bytearray()
        iid = self._intern(name, EVENT_NAMES, new)
        annotations = [
            (ANNOTATIONS, message((ANNOTATION_NAME_IID, self._intern(key, ANNOTATION_NAMES, new)),
                                  (ANNOTATION_POINTER, value)))
            for key, value in facts.items()
        ]  # fmt: skip
        begin = message((TYPE, SLICE_BEGIN), (TRACK, self._track), (NAME_IID, iid), *annotations)
        end = message((TYPE, SLICE_END), (TRACK, self._track))
        self._packets += self._packet(began_ns, begin, bytes(new)) + self._packet(ended_ns, end)

    def count(self, track: int, at_ns: int, value: int) -> None:
        """Add a value of a counter, whose track `counter` has declared."""
        event = message((TYPE, COUNT), (TRACK, track), (COUNTER_VALUE, value))
        self._packets += self._packet(at_ns, event)

    def counter(self, track: int, parent: int, name: str) -> None:
        """Declare the track of a counter."""
        descriptor = message((UUID, track), (PARENT, parent), (NAME, name), (COUNTER, b""))
        self._packets += packet((SEQUENCE, self._number), (DESCRIPTOR, descriptor))

    def take(self) -> bytes:
        """Return the complete packets since the last call."""
        packets, self._packets = self._packets, bytearray()
        return bytes(packets)

    @property
    def size(self) -> int:
        """The number of bytes to take."""
        return len(self._packets)

    def _packet(self, at_ns: int, event: bytes, interned: bytes = b"") -> bytes:
        fields: list[Field] = [
            (TIMESTAMP, at_ns),
            (SEQUENCE, self._number),
            (FLAGS, NEEDS_INCREMENTAL_STATE),
            (TRACK_EVENT, event),
        ]
        if interned:
            fields.append((INTERNED, interned))
        return packet(*fields)

    def _intern(self, name: str, kind: int, new: bytearray) -> int:
        """Return the number of a name; a new name is added to ``new``."""
        key = f"{kind} {name}"
        if key not in self._names:
            self._names[key] = len(self._names) + 1
            new += message((kind, message((IID, self._names[key]), (INTERNED_NAME, name))))
        return self._names[key]
