"""Linux's drivers for disks and entropy judge ours; e2fsprogs judges what is left on the disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.layout import MIB
from tests import ext4, linux
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DRIVERS = ("virtio_mmio", "virtio_blk", "virtio_rng", "ext4")
DISK = 48 * MIB

Boot = Callable[..., Session]


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "initrd"
    path.write_bytes(
        linux.initramfs({**linux.modules("6.1", *DRIVERS), **linux.e2fsprogs(), **linux.rngtest()})
    )
    return path


@pytest.fixture
def boot(pyvmm_cmd: list[str], initrd: Path) -> Boot:
    """Boot a kernel that has the drivers."""

    def boot_kernel(*options: str) -> Session:
        command = [*pyvmm_cmd, "run", "-i", str(initrd), "-m", "256", "-c", "2"]
        return Session([*command, *options, "-pquiet", str(linux.image("6.1"))])

    return boot_kernel


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty disk."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(DISK)
    return path


def sums(guest: Session, *names: str) -> dict[str, str]:
    """The checksums of files in a guest."""
    lines = guest.shell("sha256sum " + " ".join(names)).splitlines()
    return {name: summed for summed, name in map(str.split, lines)}


def make_file_system(guest: Session, device: str, options: str = "") -> None:
    assert guest.shell(f"/sbin/mke2fs -q -t ext4 {device} && echo made") == "made"
    guest.shell("mkdir -p /mnt")
    assert guest.shell(f"mount -t ext4 {options} {device} /mnt && echo there") == "there"


def fill(guest: Session) -> dict[str, str]:
    """Files of a few sizes, synced; their checksums."""
    guest.shell("dd if=/dev/urandom of=/mnt/large bs=64k count=128 conv=fsync")
    guest.shell("dd if=/dev/urandom of=/mnt/small bs=1 count=777 conv=fsync")
    guest.shell("for n in 1 2 3; do cat /mnt/large >/mnt/c; done; rm /mnt/c; sync")
    return sums(guest, "/mnt/large", "/mnt/small")


def test_file_system_made_by_linux_is_whole_and_the_same_outside(
    boot: Boot, disk: Path, tmp_path: Path
) -> None:
    content = random.Random(5).randbytes(MIB)
    (tmp_path / "ro.img").write_bytes(content)

    with boot("-d", str(disk), "-d", f"{tmp_path}/ro.img,ro", "--rng") as guest:
        guest.wait_for(PROMPT)
        make_file_system(guest, "/dev/vda", "-o discard")
        summed = fill(guest)
        assert "bytes trimmed" in guest.shell("fstrim -v /mnt; umount /mnt")
        assert "clean" in guest.shell("/sbin/e2fsck -n /dev/vda")

        guest.shell("cat /sys/block/vdb/ro; dd if=/dev/zero of=/dev/vdb count=1")
        assert guest.shell("cat /sys/block/vdb/ro") == "1"
        (in_guest,) = sums(guest, "/dev/vdb").values()

        assert guest.shell("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
        assert "FIPS 140-2 failures: 0" in guest.shell("rngtest -c 20 </dev/hwrng")
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0

    ext4.fsck(disk)
    assert summed == {f"/mnt/{name}": ext4.sha256(disk, name) for name in ("large", "small")}
    assert (tmp_path / "ro.img").read_bytes() == content
    assert in_guest == ext4.sha256_of(content)
