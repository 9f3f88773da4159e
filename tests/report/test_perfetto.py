"""Traces, read back with the definitions of Perfetto's own Python library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import UsageError
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason
from pyvmm.machine import trace
from pyvmm.machine.trace import ExitTrace
from pyvmm.report import perfetto

definitions: Any = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")

LONG_NS = 10_000_000_000  # longer than any preemption of this test


def packets(data: bytes) -> list[Any]:
    read = definitions.Trace()
    read.ParseFromString(data)
    return list(read.packet)


class Names:
    """The names of interned numbers, as a trace's reader learns them."""

    def __init__(self) -> None:
        self.events: dict[tuple[int, int], str] = {}
        self.annotations: dict[tuple[int, int], str] = {}

    def learn(self, packet: Any) -> None:
        sequence = packet.trusted_packet_sequence_id
        for entry in packet.interned_data.event_names:
            self.events[sequence, entry.iid] = entry.name
        for entry in packet.interned_data.debug_annotation_names:
            self.annotations[sequence, entry.iid] = entry.name


def slices(data: bytes) -> list[tuple[str, str, int, dict[str, int]]]:
    """Return track, name, duration in ns and facts of each slice of a trace."""
    names, tracks, open_slices, found = Names(), {}, {}, []
    for packet in packets(data):
        names.learn(packet)
        if packet.HasField("track_descriptor"):
            descriptor = packet.track_descriptor
            tracks[descriptor.uuid] = descriptor.thread.thread_name or descriptor.name
        event, sequence = packet.track_event, packet.trusted_packet_sequence_id
        if event.type == event.TYPE_SLICE_BEGIN:
            facts = {
                names.annotations[sequence, note.name_iid]: note.pointer_value
                for note in event.debug_annotations
            }
            name = names.events[sequence, event.name_iid]
            open_slices[event.track_uuid] = (name, packet.timestamp, facts)
        elif event.type == event.TYPE_SLICE_END:
            name, began, facts = open_slices.pop(event.track_uuid)
            found.append((tracks[event.track_uuid], name, packet.timestamp - began, facts))
    assert not open_slices
    return found


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, (1 << 64) - 1])
def test_numbers_are_read_back(number: int) -> None:
    (packet,) = packets(perfetto.packet((perfetto.TIMESTAMP, number)))

    assert packet.timestamp == number


def test_slices_are_read_back_with_their_facts(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with ExitTrace(path, "demo") as written:
        write = Exit(ExitReason.MMIO, 0x100_0000, 1, True, 0x41)
        written.exit(0, "uart0 write", write, trace.now_ns() - LONG_NS)
        written.exit(1, "uart0 read", Exit(ExitReason.MMIO, 0x100_0005, 1), trace.now_ns())
        written.exit(0, "uart0 write", write, trace.now_ns())
        written.exit(0, "INTR", Exit(ExitReason.INTR), trace.now_ns())

    first, *others = sorted(slices(path.read_bytes()), key=lambda one: -one[2])
    assert first[:2] == ("vCPU 0", "uart0 write")
    assert first[2] >= LONG_NS
    assert first[3] == {"address": 0x100_0000, "length": 1, "data": 0x41}
    assert sorted(one[:2] for one in others) == [
        ("vCPU 0", "INTR"), ("vCPU 0", "uart0 write"), ("vCPU 1", "uart0 read"),
    ]  # fmt: skip


def test_names_are_interned_once(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with ExitTrace(path, "demo") as written:
        for _ in range(100):
            written.exit(0, "a name to be found", Exit(ExitReason.INTR), trace.now_ns())

    data = path.read_bytes()
    assert data.count(b"a name to be found") == 1
    assert len(slices(data)) == 100


def test_counters_show_exits_handled_in_c(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with ExitTrace(path, "demo") as written:
        for count in (3, 3, 8):
            written.completed(0, {"uart0 read": count})
        written.completed(1, {"unclaimed write": 1, "uart0 read": 2})

    tracks = {}
    values = []
    for packet in packets(path.read_bytes()):
        if packet.track_descriptor.HasField("counter"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor.name
        if packet.track_event.type == packet.track_event.TYPE_COUNTER:
            event = packet.track_event
            values.append((tracks[event.track_uuid], event.counter_value))
    assert values == [
        ("uart0 read, without Python", 3),
        ("uart0 read, without Python", 8),
        ("unclaimed write, without Python", 1),
        ("uart0 read, without Python", 2),
    ]
    assert len(tracks) == 3


def test_trace_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with ExitTrace(path, "demo") as written:
        written.exit(0, "INTR", Exit(ExitReason.INTR), trace.now_ns())

        assert not path.exists()
    assert path.exists()


def test_unwritable_path_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        ExitTrace(tmp_path / "nowhere" / "trace", "demo")
