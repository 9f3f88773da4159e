"""A VM's replies, without KVM."""

from __future__ import annotations

import mmap
from pathlib import Path

from pyvmm.control.service import resident
from pyvmm.memory.ram import GuestMemory

SMAPS = """\
00400000-00500000 r-xp 00000000 fd:00 1   /usr/bin/python3
Size:               1024 kB
Rss:                 512 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Size:               1024 kB
Rss:                  16 kB
Pss:                  16 kB
7f0000100000-7f0000200000 rw-p 00000000 00:00 0
Rss:                   4 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:    2048 kB
VmFlags: rd wr mr mw me ac
7f0000200000-7f0000300000 rw-p 00000000 00:00 0
Rss:                1024 kB
"""


def test_resident_memory_counts_only_the_range(tmp_path: Path) -> None:
    maps = tmp_path / "smaps"
    maps.write_text(SMAPS)

    assert resident((0x7F00_0000_0000, 0x20_0000), maps=maps) == (20 + 2048) * 1024


def test_resident_memory_of_two_ranges_in_one_mapping_counts_once(tmp_path: Path) -> None:
    maps = tmp_path / "smaps"
    maps.write_text(SMAPS)
    ranges = ((0x7F00_0000_0000, 0x1000), (0x7F00_0008_0000, 0x1000), (0x40_0000, 0x1000))

    assert resident(*ranges, maps=maps) == (16 + 512) * 1024


def test_resident_memory_grows_as_it_is_touched() -> None:
    size = 8 << 20
    with GuestMemory(0x8000_0000, size) as memory:
        before = resident((memory.host_address, size))
        for page in range(0, size, mmap.PAGESIZE):
            memory.write(0x8000_0000 + page, b"x")

        after = resident((memory.host_address, size))

    assert before < size // 4
    assert after >= size
