"""What a KVM_RUN that fails is told as, where it is a file's fault."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.pmem import VirtioPmem
from pyvmm.errors import KvmError
from pyvmm.machine.edges import explain

BAD_ADDRESS = KvmError("KVM_RUN", "vcpu 0", errno.EFAULT)


def slot(missing: int = 0, is_full: bool = False) -> VirtioMmio:
    """Persistent memory in a slot, of a file that is so."""
    pmem: Any = VirtioPmem.__new__(VirtioPmem)
    pmem.content = SimpleNamespace(missing=missing, is_full=is_full)
    pmem.backing, pmem.size = "/a/file", 4096
    return cast("VirtioMmio", SimpleNamespace(device=pmem))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"missing": 512}, "--pmem /a/file: the file has become 512 bytes shorter"),
        ({"is_full": True}, "--pmem /a/file: no space is left"),
    ],
)
def test_bad_address_is_the_files_fault(state: dict[str, Any], words: str) -> None:
    told = explain(BAD_ADDRESS, [slot(), slot(**state)])

    assert told.message.startswith(words)
    assert told.hint is not None
    assert "Bad address" in told.hint


def test_other_errors_are_told_as_they_are() -> None:
    other = KvmError("KVM_RUN", "vcpu 0", errno.EINVAL)

    assert explain(other, [slot(missing=1)]) is other
    assert explain(BAD_ADDRESS, [slot()]) is BAD_ADDRESS
    assert explain(BAD_ADDRESS, []) is BAD_ADDRESS
