"""Disks, persistent memory and entropy; the judges are Linux's drivers and e2fsprogs."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.layout import MIB
from tests import ext4, linux
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

DRIVERS = ("virtio_mmio", "virtio_blk", "virtio_rng", "virtio_pmem", "nd_pmem", "ext4")
DISK = 48 * MIB
NO_DAX = ("5.10", "6.1")  # Debian's kernels of these versions have no ZONE_DEVICE, so no DAX

Boot = Callable[..., Session]


@pytest.fixture(scope="module")
def initrds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return an initramfs for a kernel, with its drivers and the programs."""
    directory = tmp_path_factory.mktemp("disk")

    def initrd(version: str) -> Path:
        path = directory / version
        if not path.exists():
            programs = {**linux.e2fsprogs(), **linux.rngtest()}
            path.write_bytes(linux.initramfs({**linux.modules(version, *DRIVERS), **programs}))
        return path

    return initrd


@pytest.fixture
def boot(pyvmm_cmd: list[str], initrds: Callable[[str], Path]) -> Boot:
    """Boot a kernel that has the drivers."""

    def boot_kernel(*options: str, version: str = "6.1") -> Session:
        command = [*pyvmm_cmd, "run", "-i", str(initrds(version)), "-m", "256", "-c", "2"]
        guest = Session([*command, *options, "-pquiet", str(linux.image(version))])
        guest.wait_for(PROMPT)
        guest.shell("mkdir /mnt")
        return guest

    return boot_kernel


def empty(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(DISK)
    return path


def sums(guest: Session, *names: str) -> dict[str, str]:
    """Return the checksums of files in a guest."""
    lines = guest.shell("sha256sum " + " ".join(names)).splitlines()
    return {name: summed for summed, name in map(str.split, lines)}


def make_file_system(guest: Session, device: str, options: str = "") -> None:
    assert guest.shell(f"/sbin/mke2fs -q -t ext4 -b 4096 {device} && echo made") == "made"
    assert guest.shell(f"mount -t ext4 {options} {device} /mnt && echo there") == "there"


def fill(guest: Session) -> dict[str, str]:
    """Write files of a few sizes, sync, and return their checksums."""
    guest.shell("dd if=/dev/urandom of=/mnt/large bs=64k count=24 conv=fsync")
    guest.shell("dd if=/dev/urandom of=/mnt/small bs=777 count=1 conv=fsync")
    guest.shell("for n in 1 2 3; do cat /mnt/large >/mnt/c; done; rm /mnt/c; sync")
    return sums(guest, "/mnt/large", "/mnt/small")


def unmount(guest: Session, device: str) -> None:
    guest.shell("umount /mnt")
    assert "clean" in guest.shell(f"/sbin/e2fsck -n {device}")


def check_outside(image: Path, in_guest: dict[str, str]) -> None:
    """Check that the file system is whole, with the same files as in the guest."""
    ext4.fsck(image)
    assert in_guest == {name: ext4.sha256(image, name.removeprefix("/mnt/")) for name in in_guest}


@pytest.mark.parametrize(
    ("version", "transport"),
    [
        ("6.1", "mmio"),
        pytest.param("6.1", "mmio-legacy", marks=pytest.mark.matrix),
        pytest.param("5.10", "mmio", marks=pytest.mark.matrix),
        pytest.param("6.12", "mmio", marks=pytest.mark.matrix),
        pytest.param("7.2", "mmio", marks=pytest.mark.matrix),
    ],
)
def test_file_systems_made_by_linux_are_whole_and_equal_outside(
    boot: Boot, tmp_path: Path, version: str, transport: str
) -> None:
    disk, pmem, ro = empty(tmp_path / "disk"), empty(tmp_path / "pmem"), tmp_path / "ro"
    content = random.Random(5).randbytes(MIB)
    ro.write_bytes(content)
    options = ["-d", str(disk), "-d", f"{ro},ro", "--pmem", str(pmem), "--rng"]

    with boot(*options, f"--virtio-transport={transport}", version=version) as guest:
        make_file_system(guest, "/dev/vda", "-o discard")
        on_disk = fill(guest)
        assert "bytes trimmed" in guest.shell("fstrim -v /mnt")
        unmount(guest, "/dev/vda")

        make_file_system(guest, "/dev/pmem0", "" if version in NO_DAX else "-o dax")
        assert ("dax" in guest.shell("grep /mnt /proc/mounts")) == (version not in NO_DAX)
        on_pmem = fill(guest)
        unmount(guest, "/dev/pmem0")

        guest.shell("dd if=/dev/zero of=/dev/vdb count=1")
        assert guest.shell("cat /sys/block/vdb/ro") == "1"
        assert list(sums(guest, "/dev/vdb").values()) == [ext4.sha256_of(content)]

        assert guest.shell("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
        assert "FIPS 140-2 failures: 0" in guest.shell("rngtest -c 20 </dev/hwrng")
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0

    check_outside(disk, on_disk)
    check_outside(pmem, on_pmem)
    assert ro.read_bytes() == content


@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["disk", "pmem"])
def test_guest_killed_during_writes_recovers_like_after_a_power_cut(
    boot: Boot, pyvmm_cmd: list[str], tmp_path: Path, kind: str
) -> None:
    image = empty(tmp_path / "image")
    option, device = ("-d", "/dev/vda") if kind == "disk" else ("--pmem", "/dev/pmem0")

    with boot(option, str(image), "--name", "power-cut") as guest:
        make_file_system(guest, device)
        guest.shell("mkdir /mnt/d; dd if=/dev/urandom of=/mnt/kept bs=64k count=16 conv=fsync")
        kept = sums(guest, "/mnt/kept")
        # Each file holds its number.  The guest prints the number after a sync.  Such a file must
        # be there with its content, whatever was in flight at the end.
        guest.type(
            b"n=0; while true; do n=$((n+1)); yes $n | head -c 20000 >/mnt/d/$n; sync; "
            b"echo synced $n; dd if=/dev/urandom of=/mnt/x bs=4k count=200; done 2>/dev/null\n"
        )
        guest.wait_for(b"synced 5\r\n")
        guest.kill()
    while b"power-cut" in subprocess.check_output([*pyvmm_cmd, "list"]):
        time.sleep(0.2)

    assert "needs_recovery" in ext4.features(image)
    ext4.recover(image)
    assert kept == {"/mnt/kept": ext4.sha256(image, "kept")}
    for number in range(1, 6):
        expected = (f"{number}\n" * 20000).encode()[:20000]
        assert ext4.sha256(image, f"d/{number}") == ext4.sha256_of(expected)


@pytest.mark.matrix
def test_guest_saved_during_writes_continues_and_loses_nothing(
    boot: Boot, pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    disk, file = empty(tmp_path / "disk"), tmp_path / "guest.snap"
    with boot("-d", str(disk), "--name", "amid") as guest:
        make_file_system(guest, "/dev/vda")
        guest.type(
            b"for n in 1 2 3 4 5 6 7 8; do (dd if=/dev/urandom bs=4k count=256 | tee /tmp$n "
            b"| dd of=/mnt/f$n bs=4k conv=fsync; echo done $n) 2>/dev/null & done; wait; "
            b"sha256sum /tmp[1-8] | cut -c1-64; echo summed\n"
        )
        guest.wait_for(b"done ")  # one of them has ended; the others still write
        saved = subprocess.run([*pyvmm_cmd, "save", "amid", str(file)], capture_output=True)
        assert saved.returncode == 0, saved.stderr
        assert guest.end() == 0

    with Session([*pyvmm_cmd, "restore", str(file)]) as guest:
        lines = guest.wait_for(b"summed\r\n").decode().split()
        guest.wait_for(PROMPT)
        typed = [line for line in lines if len(line) == 64]
        assert len(typed) == 8
        guest.shell("echo 3 >/proc/sys/vm/drop_caches")
        in_guest = sums(guest, *(f"/mnt/f{n}" for n in range(1, 9)))
        assert list(in_guest.values()) == typed
        unmount(guest, "/dev/vda")
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0
    check_outside(disk, in_guest)
