"""The files of a comparison: the user's lkvm."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import parts
from pyvmm.errors import HostError
from pyvmm.host.progress import Progress

AARCH64 = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xb7\0"
X86_64 = AARCH64[:18] + b"\x3e\0"


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", X86_64])
def test_build_refuses_an_lkvm_that_is_not_for_arm64(tmp_path: Path, content: bytes) -> None:
    lkvm = tmp_path / "lkvm"
    lkvm.write_bytes(content)

    with pytest.raises(HostError, match=r"LKVM=.*lkvm: not a program for arm64"):
        parts.build(tmp_path, lkvm, Progress(quiet=True))


def test_build_refuses_an_lkvm_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"LKVM=.*lkvm: No such file"):
        parts.build(tmp_path, tmp_path / "lkvm", Progress(quiet=True))


def test_lkvms_exits_guest_is_flat_and_takes_no_input(tmp_path: Path) -> None:
    lkvm = tmp_path / "mine"
    lkvm.write_bytes(AARCH64)

    parts.copy_lkvm(lkvm, tmp_path, Progress(quiet=True))

    guest = (tmp_path / "exits-lkvm").read_bytes()
    assert guest[:4] != b"\x7fELF"
    assert b"polled_byte" in guest
    assert b"byte_in" not in guest
    assert (tmp_path / "lkvm").read_bytes() == AARCH64
