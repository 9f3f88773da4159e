"""Statistics files, which describe themselves."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pyvmm.kvm.caps import Cap
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.stats import Stats
from pyvmm.kvm.uapi import ExitReason
from tests.kvm.guest import MMIO, guest

NAME_SIZE = 16
HEADER = struct.pack("<6I", 0, NAME_SIZE, 3, 24, 64, 256)


def descriptor(name: bytes, size: int, offset: int) -> bytes:
    return struct.pack("<IhHII", 0, 0, size, offset, 0) + name.ljust(NAME_SIZE, b"\0")


def test_read_finds_the_counts_from_the_files_header(tmp_path: Path) -> None:
    table = descriptor(b"exits", 1, 0) + descriptor(b"hist", 3, 8) + descriptor(b"wfi", 1, 32)
    values = struct.pack("<5Q", 7, 1, 2, 3, 1 << 63)
    file = tmp_path / "stats"
    file.write_bytes(HEADER.ljust(64, b"\0") + table.ljust(192, b"\0") + values)
    stats = Stats(os.open(file, os.O_RDONLY))

    counts = stats.read()

    stats.close()
    assert counts == {"exits": 7, "wfi": 1 << 63}


@pytest.mark.kvm
def test_kvm_counts_an_exit() -> None:
    with guest("store_then_load") as made:
        made.set(x0=MMIO)
        if not made.vm.has(Cap.BINARY_STATS_FD):
            pytest.skip("this kernel has no binary statistics")
        stats = Stats(made.vcpu.get_stats_fd())
        before = stats.read()
        leave = made.vcpu.run()
        after = stats.read()
        stats.close()

        assert isinstance(leave, Exit)
        assert leave.reason == ExitReason.MMIO
        assert after["mmio_exit_user"] == before["mmio_exit_user"] + 1
        assert after["exits"] > before["exits"]
