"""Debian from a disk: its own init, its own login."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.layout import MIB
from tests import debianroot, ext4, linux
from tests.linux import Session

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(1200)]

DRIVERS = ("virtio_mmio", "virtio_blk", "ext4")


def test_debian_boots_from_its_disk_to_a_login(pyvmm_cmd: list[str], tmp_path: Path) -> None:
    root, initrd = tmp_path / "root.img", tmp_path / "initrd.img"
    debianroot.write_image(root, 512 * MIB)
    initrd.write_bytes(linux.initramfs(linux.modules("6.1", *DRIVERS), linux.SWITCH_ROOT))
    kernel = str(linux.image("6.1"))
    command = [*pyvmm_cmd, "run", "-k", kernel, "-i", str(initrd), "-d", str(root), "-c", "2"]

    with Session(command) as guest:
        guest.wait_for(b"debian-on-pyvmm login: ", timeout_s=1000)
        guest.type(b"root\n")
        guest.wait_for(b"# ")
        guest.type(b"echo written by $(. /etc/os-release; echo $ID) >/root/file; sync\n")
        guest.type(b"findmnt -no SOURCE,FSTYPE /\n")
        guest.wait_for(b"/dev/vda ext4")
        guest.type(b"poweroff\n")
        guest.wait_for(b"reboot: Power down", timeout_s=300)
        assert guest.end() == 0

    ext4.fsck(root)
    assert ext4.sha256(root, "root/file") == ext4.sha256_of(b"written by debian\n")
