"""Files that are no vhost device."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyvmm.devices.virtio.vsock import VhostVsock
from pyvmm.errors import HostError


def test_missing_device_is_refused_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot open .*/none: No such file") as caught:
        VhostVsock(3, tmp_path / "none")

    assert "modprobe vhost_vsock" in (caught.value.hint or "")


def test_device_of_another_user_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "vhost-vsock"

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)  # root may open every file

    with pytest.raises(HostError, match="Permission denied") as caught:
        VhostVsock(3, node)

    assert f"setfacl -m u:$USER:rw {node}" in (caught.value.hint or "")


def test_other_file_is_refused_and_closed() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - only the names

    with pytest.raises(HostError, match="vhost-vsock: VHOST_SET_OWNER: Inappropriate ioctl"):
        VhostVsock(3, Path("/dev/null"))

    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208 - only the names
