"""The preparations of the emulated host's first process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.host.inside.agent import DEVICE, keep_vm_open


@pytest.mark.kvm
def test_keep_vm_open_returns_the_vms_descriptor() -> None:
    fd = keep_vm_open(DEVICE)

    assert fd is not None
    assert str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:kvm-vm"
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_keep_vm_open_prints_an_error_without_kvm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_kvm = tmp_path / "kvm"
    no_kvm.touch()

    assert keep_vm_open(no_kvm) is None
    assert capsys.readouterr().out == (
        f"pyvmm-agent: keeping a VM open: {no_kvm}: Inappropriate ioctl for device\n"
    )
