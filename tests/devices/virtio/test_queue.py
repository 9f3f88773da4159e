"""The queue with valid, unusual and invalid rings of a driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.devices.virtio.queue import QueueError, Virtqueue
from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import INDIRECT, NEXT, RAM_SIZE, WRITE, Buffer, Ram, Ring

SIZE = 8
END = RAM_BASE + RAM_SIZE


class Pair:
    """A queue and the driver's side of it."""

    def __init__(self, memory: GuestMemory, size: int = SIZE, *, event_idx: bool = False) -> None:
        self.ram = Ram(memory)
        self.ring = Ring(self.ram, size, event_idx=event_idx)
        self.queue = Virtqueue(memory, "testq", size)
        self.queue.event_idx = event_idx
        self.queue.indirect = True
        self.place()
        self.queue.enable()

    def place(self) -> None:
        queue, ring = self.queue, self.ring
        queue.size, queue.desc, queue.driver, queue.device = (
            ring.size, ring.desc, ring.avail, ring.used,
        )  # fmt: skip

    def buffer(self, data: bytes) -> Buffer:
        return Buffer(self.ram.put(data), len(data))

    def room(self, size: int) -> Buffer:
        return Buffer(self.ram.take(size), size, write=True)

    def pass_through(self) -> None:
        """Pass one chain to the device and back."""
        chain = self.queue.pop()
        assert chain is not None
        self.queue.push(chain, 0)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, RAM_SIZE) as ram:
        yield ram


@pytest.fixture
def pair(memory: GuestMemory) -> Iterator[Pair]:
    made = Pair(memory)
    yield made
    made.queue.reset()


# Chains


def test_pop_of_an_empty_queue_returns_none(pair: Pair) -> None:
    assert pair.queue.pop() is None
    assert not pair.queue.has_chains()


def test_chain_has_readable_and_writable_parts(pair: Pair) -> None:
    rooms = pair.room(3), pair.room(5)
    head = pair.ring.add(pair.buffer(b"ab"), pair.buffer(b"cde"), *rooms)

    chain = pair.queue.pop()
    assert chain is not None
    read, sizes = chain.read(), (chain.readable_size, chain.writable_size)
    written = chain.write(b"12345")
    pair.queue.push(chain, written)

    assert (read, sizes, written) == (b"abcde", (5, 8), 5)
    assert pair.ram.memory.read(rooms[0].addr, 3) == b"123"
    assert pair.ram.memory.read(rooms[1].addr, 5) == b"45\0\0\0"
    assert pair.ring.take_used() == [(head, 5)]


def test_chain_write_stops_at_the_room(pair: Pair) -> None:
    pair.ring.add(pair.room(3), pair.room(2))

    chain = pair.queue.pop()

    assert chain is not None
    assert chain.write(b"0123456789") == 5


def test_chain_is_read_in_pieces_of_bounded_size(pair: Pair) -> None:
    pair.ring.add(pair.buffer(b"abcdefg"), pair.buffer(b"hi"))

    chain = pair.queue.pop()

    assert chain is not None
    assert list(chain.pieces(3)) == [b"abc", b"def", b"g", b"hi"]


def test_empty_descriptors_are_ignored_at_any_address(pair: Pair) -> None:
    pair.ring.add(Buffer(0, 0), pair.buffer(b"x"), Buffer(END + 5, 0))

    chain = pair.queue.pop()

    assert chain is not None
    assert chain.read() == b"x"


def test_chain_as_long_as_the_queue_is_taken(pair: Pair) -> None:
    pair.ring.add(*[pair.buffer(b"x")] * SIZE)

    chain = pair.queue.pop()

    assert chain is not None
    assert chain.read() == b"x" * SIZE


def test_buffer_may_end_where_the_ram_does(pair: Pair) -> None:
    pair.ring.add(Buffer(END - 4, 4))

    chain = pair.queue.pop()

    assert chain is not None
    assert chain.readable_size == 4


def test_indirect_table_is_followed(pair: Pair) -> None:
    head = pair.ring.indirect([pair.buffer(b"a"), pair.buffer(b"b"), pair.room(1)])
    pair.ring.publish(head)

    chain = pair.queue.pop()

    assert chain is not None
    assert (chain.head, chain.read(), chain.writable_size) == (head, b"ab", 1)


def test_indirect_table_may_follow_descriptors_and_be_marked_writable(pair: Pair) -> None:
    tail = pair.ring.indirect([pair.buffer(b"b")] * (SIZE - 1), flags=INDIRECT | WRITE)
    first = pair.buffer(b"a")
    pair.ring.raw(SIZE - 1, first.addr, 1, NEXT, tail)
    pair.ring.publish(SIZE - 1)

    chain = pair.queue.pop()

    assert chain is not None
    assert chain.read() == b"a" + b"b" * (SIZE - 1)


# Broken rules


def rule_head(pair: Pair) -> None:
    pair.ring.publish(SIZE)


def rule_next(pair: Pair) -> None:
    pair.ring.raw(0, RAM_BASE, 1, NEXT, SIZE)
    pair.ring.publish(0)


def rule_loop(pair: Pair) -> None:
    pair.ring.raw(0, RAM_BASE, 1, NEXT, 1)
    pair.ring.raw(1, RAM_BASE, 1, NEXT, 0)
    pair.ring.publish(0)


def rule_loop_of_nothing(pair: Pair) -> None:
    pair.ring.raw(0, 0, 0, NEXT, 0)
    pair.ring.publish(0)


def rule_below_ram(pair: Pair) -> None:
    pair.ring.add(Buffer(RAM_BASE - 1, 2))


def rule_across_the_end(pair: Pair) -> None:
    pair.ring.add(Buffer(END - 1, 2))


def rule_overflow(pair: Pair) -> None:
    pair.ring.add(Buffer((1 << 64) - 1, 0xFFFF_FFFF))


def rule_write_outside(pair: Pair) -> None:
    pair.ring.add(Buffer(0, 4096, write=True))


def rule_read_after_write(pair: Pair) -> None:
    pair.ring.add(pair.room(1), pair.buffer(b"x"))


def rule_too_many_available(pair: Pair) -> None:
    pair.ring.idx = SIZE
    pair.ring.publish(0)


def rule_index_goes_back(pair: Pair) -> None:
    pair.ring.idx = 0xFFFE
    pair.ring.publish(0)


def rule_nested_indirect(pair: Pair) -> None:
    table = pair.ram.take(16)
    pair.ram.write(table, "<QIHH", table, 16, INDIRECT, 0)
    pair.ring.raw(0, table, 16, INDIRECT)
    pair.ring.publish(0)


def rule_indirect_with_next(pair: Pair) -> None:
    pair.ring.publish(pair.ring.indirect([pair.buffer(b"x")], flags=INDIRECT | NEXT))


def rule_indirect_odd_length(pair: Pair) -> None:
    pair.ring.raw(0, RAM_BASE, 24, INDIRECT)
    pair.ring.publish(0)


def rule_indirect_empty(pair: Pair) -> None:
    pair.ring.raw(0, RAM_BASE, 0, INDIRECT)
    pair.ring.publish(0)


def rule_indirect_outside(pair: Pair) -> None:
    pair.ring.raw(0, END - 16, 32, INDIRECT)
    pair.ring.publish(0)


def rule_indirect_next_outside(pair: Pair) -> None:
    table = pair.ram.take(16)
    pair.ram.write(table, "<QIHH", RAM_BASE, 1, NEXT, 1)
    pair.ring.raw(0, table, 16, INDIRECT)
    pair.ring.publish(0)


def rule_indirect_too_long(pair: Pair) -> None:
    pair.ring.publish(pair.ring.indirect([pair.buffer(b"x")] * (SIZE + 1)))


def rule_indirect_not_negotiated(pair: Pair) -> None:
    pair.queue.indirect = False
    pair.ring.publish(pair.ring.indirect([pair.buffer(b"x")]))


RULES = [value for name, value in sorted(globals().items()) if name.startswith("rule_")]


@pytest.mark.parametrize("broken", RULES, ids=lambda rule: rule.__name__[5:])
def test_broken_rule_is_an_error_with_the_queues_name(pair: Pair, broken: object) -> None:
    assert callable(broken)
    broken(pair)

    with pytest.raises(QueueError, match=r"^testq "):
        pair.queue.pop()


def test_chain_of_more_than_four_gibibytes_is_refused(pair: Pair) -> None:
    queue = Virtqueue(pair.ram.memory, "testq", 2048)
    ring = Ring(pair.ram, 2048)
    queue.desc, queue.driver, queue.device = ring.desc, ring.avail, ring.used
    queue.enable()
    ring.add(*[Buffer(RAM_BASE, RAM_SIZE)] * 1025)

    with pytest.raises(QueueError, match="more than 0x100000000 bytes"):
        queue.pop()
    queue.reset()


# Sizes and addresses


@pytest.mark.parametrize("size", [0, 3, 16, 65536, 1 << 31])
def test_size_that_is_not_allowed_is_refused(pair: Pair, size: int) -> None:
    pair.queue.reset()
    pair.place()
    pair.queue.size = size

    with pytest.raises(QueueError, match="size"):
        pair.queue.enable()
    assert not pair.queue.ready


@pytest.mark.parametrize("size", [1, 2, 8])
def test_size_that_is_allowed_is_taken(pair: Pair, size: int) -> None:
    pair.queue.reset()
    pair.place()
    pair.queue.size = size

    pair.queue.enable()

    assert pair.queue.ready


@pytest.mark.parametrize(("area", "align"), [("desc", 16), ("driver", 2), ("device", 4)])
def test_area_that_is_not_aligned_is_refused(pair: Pair, area: str, align: int) -> None:
    pair.queue.reset()
    pair.place()
    setattr(pair.queue, area, getattr(pair.queue, area) + align // 2)

    with pytest.raises(QueueError, match="aligned"):
        pair.queue.enable()


@pytest.mark.parametrize("address", [0, RAM_BASE - 16, END - 16, END, (1 << 64) - 16])
@pytest.mark.parametrize("area", ["desc", "driver", "device"])
def test_area_outside_ram_is_refused(pair: Pair, area: str, address: int) -> None:
    pair.queue.reset()
    pair.place()
    setattr(pair.queue, area, address)

    with pytest.raises(QueueError, match="outside RAM"):
        pair.queue.enable()


# Indices


def test_indices_wrap_at_65536(pair: Pair) -> None:
    for turn in range(66_000):
        pair.ring.publish(turn % SIZE)
        pair.pass_through()

    assert pair.queue.used_idx == pair.ring.idx == 66_000 - 65_536
    assert [head for head, _ in pair.ring.take_used()][-1] == 65_999 % SIZE


def test_full_ring_across_the_wrap_is_taken_in_order(pair: Pair) -> None:
    for _ in range(65_533):
        pair.ring.publish(0)
        pair.pass_through()
    pair.ring.take_used()

    pair.ring.publish(*range(SIZE))
    for _ in range(SIZE):
        pair.pass_through()

    assert [head for head, _ in pair.ring.take_used()] == list(range(SIZE))
    assert pair.queue.pop() is None


# Interrupts: used_event and NO_INTERRUPT


@pytest.mark.parametrize(
    ("old", "new", "event", "wanted"),
    [
        (0, 1, 0, True),  # the entry at the event index has been written
        (0, 1, 1, False),
        (0, 1, 0xFFFF, False),
        (0, 3, 0, True),
        (0, 3, 2, True),
        (0, 3, 3, False),
        (5, 6, 4, False),  # passed before
        (0xFFFE, 0xFFFF, 0xFFFE, True),
        (0xFFFF, 0, 0xFFFF, True),
        (0xFFFF, 0, 0, False),
        (0xFFFD, 3, 1, True),
        (0xFFFD, 3, 3, False),
        (0xFFFD, 3, 0xFFFC, False),
    ],
)
def test_used_event_decides_about_the_interrupt(
    memory: GuestMemory, old: int, new: int, event: int, wanted: bool
) -> None:
    pair = Pair(memory, event_idx=True)
    rewind(pair, old)
    pair.ring.set_used_event(event)

    for _ in range((new - old) & 0xFFFF):
        pair.ring.publish(0)
        pair.pass_through()

    assert pair.queue.needs_interrupt() == wanted
    pair.queue.reset()


def rewind(pair: Pair, index: int) -> None:
    """Set both sides' indices as after that many chains."""
    pair.ring.start_at(index)
    queue = pair.queue
    queue.last_avail = queue.used_idx = queue.signalled = index


def test_needs_interrupt_is_true_once_after_a_push(memory: GuestMemory) -> None:
    pair = Pair(memory, event_idx=True)
    pair.ring.publish(0)
    pair.pass_through()

    assert pair.queue.needs_interrupt()
    assert not pair.queue.needs_interrupt()
    pair.queue.reset()


@pytest.mark.parametrize("no_interrupt", [False, True])
def test_no_interrupt_flag_counts_without_event_idx(pair: Pair, no_interrupt: bool) -> None:
    pair.ring.set_no_interrupt(no_interrupt)
    pair.ring.set_used_event(77)
    pair.ring.publish(0)
    pair.pass_through()

    assert pair.queue.needs_interrupt() == (not no_interrupt)


def test_no_interrupt_flag_is_ignored_with_event_idx(memory: GuestMemory) -> None:
    pair = Pair(memory, event_idx=True)
    pair.ring.set_no_interrupt(True)
    pair.ring.publish(0)
    pair.pass_through()

    assert pair.queue.needs_interrupt()
    pair.queue.reset()


# Kicks: avail_event and NO_NOTIFY


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("index", [0, 1, 0x7FFF, 0xFFFE, 0xFFFF])
def test_kick_is_wanted_only_after_enable_kicks(
    memory: GuestMemory, event_idx: bool, index: int
) -> None:
    pair = Pair(memory, event_idx=event_idx)
    rewind(pair, index)
    pair.queue.enable_kicks()
    pair.queue.disable_kicks()
    pair.ring.publish(0)  # with EVENT_IDX the device still wants this kick
    pair.ring.wants_kick()
    pair.pass_through()

    pair.ring.publish(0)
    unasked = pair.ring.wants_kick()
    pair.pass_through()
    arrived = pair.queue.enable_kicks()
    pair.ring.publish(0)
    asked = pair.ring.wants_kick()

    assert (unasked, arrived, asked) == (False, False, True)
    pair.queue.reset()


@pytest.mark.parametrize("event_idx", [False, True])
def test_enable_kicks_reports_earlier_chains(memory: GuestMemory, event_idx: bool) -> None:
    pair = Pair(memory, event_idx=event_idx)
    pair.queue.disable_kicks()
    pair.ring.publish(0)

    assert pair.queue.enable_kicks()
    pair.queue.reset()


# Reset


def test_chain_from_before_a_reset_is_dropped(pair: Pair) -> None:
    pair.ring.add(pair.room(4))
    chain = pair.queue.pop()
    assert chain is not None

    pair.queue.reset()
    pair.place()
    pair.queue.enable()
    owned = pair.queue.owns(chain)
    pair.queue.push(chain, 4)

    assert not owned
    assert pair.ring.take_used() == []


def test_disabled_queue_does_nothing(pair: Pair) -> None:
    pair.ring.add(pair.room(4))

    pair.queue.disable()

    assert pair.queue.pop() is None
    assert not pair.queue.has_chains()
    assert not pair.queue.enable_kicks()
    assert not pair.queue.needs_interrupt()


def test_reset_releases_guest_memory(memory: GuestMemory) -> None:
    pair = Pair(memory)
    pair.ring.add(pair.buffer(b"x"), pair.room(4))
    chain = pair.queue.pop()
    assert chain is not None

    pair.queue.reset()
    pair.queue.push(chain, 0)

    memory.close()  # BufferError if a view is left
