from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.control.service import resident
from pyvmm.errors import HostError, UsageError
from pyvmm.layout import MIB
from pyvmm.memory.ram import HUGE_PAGE, GuestMemory, warn_of_size

BASE = 0x8000_0000
SIZE = 0x40_0000 + 0x1_0000  # no multiple of 2 MiB, which the kernel would align


@pytest.fixture(params=["private", "shared"])
def memory(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    with GuestMemory(BASE, SIZE, shared=request.param == "shared") as memory:
        yield memory


def test_shared_memory_is_one_file_for_every_process() -> None:
    with GuestMemory(BASE, SIZE, shared=True) as memory:
        memory.write(BASE + 5, b"here")
        assert os.pread(memory.shared_fd, 4, 5) == b"here"

        os.pwrite(memory.shared_fd, b"there", SIZE - 5)
        assert memory.read(memory.end - 5, 5) == b"there"


@pytest.mark.parametrize("size", [0, SIZE - 4096, SIZE + 4096])
def test_no_process_can_change_the_size_of_shared_memory(size: int) -> None:
    """An access past the end of a shorter file would kill the VM."""
    with GuestMemory(BASE, SIZE, shared=True) as memory, pytest.raises(PermissionError):
        os.ftruncate(memory.shared_fd, size)


def test_memory_starts_zero(memory: GuestMemory) -> None:
    assert memory.read(BASE, SIZE) == bytes(SIZE)


def test_host_address_is_aligned_to_a_huge_page(memory: GuestMemory) -> None:
    assert memory.host_address % HUGE_PAGE == 0


def test_host_address_points_to_the_bytes(memory: GuestMemory) -> None:
    memory.write(BASE + 5, b"here")

    assert ctypes.string_at(memory.host_address + 5, 4) == b"here"


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, SIZE), (1, 0x4FFF), (0x1000, 0x2000), (0x1001, 10), (0x1FFF, 2), (SIZE - 5, 5), (7, 0)],
)
def test_zero_clears_only_its_range(memory: GuestMemory, start: int, length: int) -> None:
    memory.write(BASE, b"\xff" * SIZE)

    memory.zero(BASE + start, length)

    after = b"\xff" * start + bytes(length) + b"\xff" * (SIZE - start - length)
    assert memory.read(BASE, SIZE) == after


def test_write_at_the_last_byte_is_read_back(memory: GuestMemory) -> None:
    memory.write(memory.end - 1, b"\x42")

    assert memory.read(memory.end - 1, 1) == b"\x42"


def test_view_is_the_memory_itself(memory: GuestMemory) -> None:
    with memory.view(BASE, 4) as view:
        view[:] = b"view"

    assert memory.read(BASE, 4) == b"view"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (BASE - 1, 1),
        (BASE - 1, 2),
        (BASE + SIZE - 1, 2),
        (BASE + SIZE, 1),
        (BASE, SIZE + 1),
        (BASE + 8, -1),
        (0, 1),
        (-8, 4),
        (1 << 64, 1),
        (BASE, 1 << 64),
    ],
)
def test_access_outside_is_refused(memory: GuestMemory, gpa: int, length: int) -> None:
    with pytest.raises(GuestMemory.OutOfRange, match=f"{gpa:#x}".lstrip("-")):
        memory.view(gpa, length)


def test_write_across_the_end_changes_nothing(memory: GuestMemory) -> None:
    with pytest.raises(GuestMemory.OutOfRange):
        memory.write(memory.end - 2, b"abc")

    assert memory.read(memory.end - 2, 2) == bytes(2)


@given(st.data())
def test_any_sequence_of_accesses_behaves_as_a_byte_array(data: st.DataObject) -> None:
    size = 0x2_0000
    model = bytearray(size)
    near = st.integers(BASE - 0x1100, BASE + size + 0x1100)
    steps = data.draw(st.lists(st.tuples(near, st.integers(0, 0x2100), st.booleans())))

    with GuestMemory(BASE, size) as memory:
        for gpa, length, zero in steps:
            inside = gpa >= BASE and gpa + length <= BASE + size
            fill = bytes(length) if zero else bytes([0xA5]) * length
            try:
                if zero:
                    memory.zero(gpa, length)
                else:
                    memory.write(gpa, fill)
            except GuestMemory.OutOfRange:
                assert not inside
            else:
                assert inside
                model[gpa - BASE : gpa - BASE + length] = fill
            assert memory.read(BASE, size) == model


@pytest.mark.parametrize("size", [0, -4096, 4095, 1])
def test_size_of_no_whole_pages_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="whole pages"):
        GuestMemory(BASE, size)


@pytest.mark.parametrize("size", [1 << 62, 1 << 63, 1 << 80])
def test_memory_beyond_the_hosts_is_refused_with_numbers(size: int) -> None:
    with pytest.raises(HostError, match=f"{size >> 20} MiB") as caught:
        GuestMemory(BASE, size)

    assert caught.value.hint is not None
    assert "of memory" in caught.value.hint


def test_memory_larger_than_the_hosts_is_mapped_and_usable() -> None:
    size = 4 * host_memory()

    with GuestMemory(BASE, size) as memory:
        memory.write(memory.end - 4, b"last")

        assert memory.read(memory.end - 4, 4) == b"last"
        assert resident((memory.host_address, memory.size)) <= HUGE_PAGE


def test_warning_names_both_sizes_beyond_the_hosts_memory() -> None:
    size = host_memory()

    assert warn_of_size(size) is None
    text = warn_of_size(size + MIB)
    assert text is not None
    assert text.startswith(f"{(size + MIB) / MIB:.0f} MiB of guest memory, and the host has")
    assert f"has {size / MIB:.0f} MiB" in text
    assert "out-of-memory killer" in text


def host_memory() -> int:
    """Return this machine's memory with swap, by sysinfo(2) and /proc/swaps."""
    swaps = Path("/proc/swaps").read_text(encoding="ascii").splitlines()[1:]
    swap = sum(int(line.split()[2]) for line in swaps) << 10
    return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE + swap


def test_close_twice_is_harmless() -> None:
    memory = GuestMemory(BASE, SIZE)

    memory.close()
    memory.close()


def test_close_with_a_view_in_use_is_refused() -> None:
    memory = GuestMemory(BASE, SIZE)
    view = memory.view(BASE, 1)

    with pytest.raises(BufferError):
        memory.close()

    view.release()
    memory.close()


def test_load_copies_a_part_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(bytes(range(200)))

    with GuestMemory(BASE, SIZE) as memory, file.open("rb") as opened:
        came = memory.load(BASE + 5, 100, opened.fileno(), 50)

        assert came == 100
        assert memory.read(BASE, 110) == bytes(5) + bytes(range(50, 150)) + bytes(5)


def test_load_returns_the_bytes_read_from_a_short_file(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(b"short")

    with GuestMemory(BASE, SIZE) as memory, file.open("rb") as opened:
        assert memory.load(BASE, 100, opened.fileno(), 2) == 3


def test_load_outside_ram_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(bytes(100))

    with (
        GuestMemory(BASE, SIZE) as memory,
        file.open("rb") as opened,
        pytest.raises(GuestMemory.OutOfRange),
    ):
        memory.load(BASE + SIZE - 50, 100, opened.fileno(), 0)


@pytest.mark.parametrize(
    ("start", "length", "gone"),
    [
        (0, SIZE, (0, SIZE)),
        (1, 0x4FFF, (0x1000, 0x5000)),
        (0x1001, 0x1000, (0, 0)),
        (0x1FFF, 0x1001, (0x2000, 0x3000)),
        (SIZE - 5, 5, (0, 0)),
        (7, 0, (0, 0)),
    ],
)
def test_discard_empties_only_whole_pages(
    memory: GuestMemory, start: int, length: int, gone: tuple[int, int]
) -> None:
    memory.write(BASE, b"\xff" * SIZE)

    memory.discard(BASE + start, length)

    low, high = gone
    expected = b"\xff" * low + bytes(high - low) + b"\xff" * (SIZE - high)
    assert memory.read(BASE, SIZE) == expected


def test_discard_returns_memory_to_the_host(memory: GuestMemory) -> None:
    memory.write(BASE, b"\xff" * SIZE)
    before = resident((memory.host_address, memory.size))

    memory.discard(BASE, SIZE)

    assert before == SIZE
    assert resident((memory.host_address, memory.size)) == 0


def test_huge_pages_are_enabled_by_range(memory: GuestMemory) -> None:
    memory.prefer_huge_pages(BASE, HUGE_PAGE, False)
    with pytest.raises(GuestMemory.OutOfRange):
        memory.prefer_huge_pages(BASE, SIZE + 4096, False)
    with pytest.raises(GuestMemory.OutOfRange):
        memory.discard(BASE - 1, 10)

    assert "nh" in flags_at(memory.host_address)
    assert "hg" in flags_at(memory.host_address + HUGE_PAGE)
    memory.prefer_huge_pages(BASE, HUGE_PAGE, True)
    assert "hg" in flags_at(memory.host_address)


def flags_at(address: int) -> list[str]:
    """Return the kernel's flags of the mapping there.  Source: proc_pid_smaps(5), VmFlags."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        first, *words = line.split()
        if "-" in first and not first.endswith(":"):
            low, high = (int(word, 16) for word in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return words
    raise AssertionError("not mapped")


def test_written_pages_are_logged(memory: GuestMemory) -> None:
    page = mmap.PAGESIZE
    memory.write(memory.base, b"before")
    memory.log_writes()
    memory.write(memory.base + 2 * page - 1, b"ab")
    memory.zero(memory.base + 4 * page, page)
    memory.discard(memory.base + 6 * page, page)

    assert memory.written[:8] == bytes([0, 1, 1, 0, 1, 0, 1, 0])
    memory.log_writes()
    assert not any(memory.written)
