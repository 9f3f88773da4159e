"""The kernel's counts of vCPUs, without KVM."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.machine.counts import open_stats


class Fake:
    """A vCPU with a statistics file, or without a free descriptor for one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def get_stats_fd(self) -> int:
        if self.fd < 0:
            raise KvmError("KVM_GET_STATS_FD", "", errno.EMFILE)
        return self.fd


def test_open_stats_closes_the_files_when_one_cannot_be_opened(tmp_path: Path) -> None:
    file = tmp_path / "stats"
    file.write_bytes(bytes(24))  # a header without counts
    fd = os.open(file, os.O_RDONLY)

    with pytest.raises(KvmError), ExitStack() as undo:
        open_stats([cast(Vcpu, Fake(number)) for number in (fd, -1)], undo)

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
