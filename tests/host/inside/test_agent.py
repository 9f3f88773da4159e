"""The preparations of the emulated host's first process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pyvmm.host.inside.agent import DEVICE, _has_port_event, keep_vm_open


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


PORT = (
    b"change@/devices/platform/a003c00.virtio_mmio/virtio2/virtio-ports/vport2p16\0ACTION=change\0"
)
OTHER = b"change@/devices/virtual/misc/kvm\0ACTION=change\0EVENT=create\0"


@pytest.mark.parametrize(
    ("sent", "found"),
    [([], False), ([OTHER], False), ([PORT], True), ([PORT, OTHER], True), ([OTHER, PORT], True)],
)
def test_uevent_of_a_port_is_found_among_all_that_arrived(sent: list[bytes], found: bool) -> None:
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernels:
        ours.setblocking(False)
        for event in sent:
            kernels.send(event)

        assert _has_port_event(ours) is found
        assert _has_port_event(ours) is False
