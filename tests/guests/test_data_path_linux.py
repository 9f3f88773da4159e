"""I/O of a Linux guest in C, and amid it all that takes the queues back; the judge is sha256sum.

The guest writes files from /dev/urandom and the entropy device to its disk, and reads them back
past its page cache. Its console is virtio, so its own output uses a data path, too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.host import HostSettings, is_local
from pyvmm.layout import MIB
from tests import ext4, linux
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

DRIVERS = (
    "virtio_mmio", "virtio_console", "virtio_blk", "virtio_rng", "virtio_balloon", "virtio_mem",
    "ext4",
)  # fmt: skip
DISK = 64 * MIB
NAME = "data-path"
DEADLINE_S = "120"
PAUSES = 3

# Each turn: a file of random bytes, its checksum of what was written, then of what is read back.
LOAD = (
    "n=0; while [ ! -e /stop ]; do n=$((n+1)); "
    "(dd if=/dev/urandom bs=4k count=128; dd if=/dev/hwrng bs=1k count=8) 2>/dev/null "
    "| tee /mnt/f$((n%4)) | sha256sum >/sum; sync; echo 3 >/proc/sys/vm/drop_caches; "
    "sha256sum </mnt/f$((n%4)) | cmp -s - /sum && echo good >>/log || echo bad >>/log; done"
)

Tell = Callable[..., str]


@pytest.fixture
def tell(pyvmm_cmd: list[str]) -> Tell:
    """Return a function that runs pyvmm to its end."""

    def run(*words: str) -> str:
        done = subprocess.run([*pyvmm_cmd, *words], capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(DISK)
    return path


@pytest.fixture
def start(pyvmm_cmd: list[str], disk: Path, tmp_path: Path) -> Callable[[], Session]:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(linux.initramfs({**linux.modules("6.1", *DRIVERS), **linux.e2fsprogs()}))
    words = ["-i", str(initrd), "-m", "256", "-c", "2", "--console=virtio", "-d", str(disk)]
    words += ["--rng", "--balloon", "--hotplug", "256", "--name", NAME, "-pquiet"]
    command = [*pyvmm_cmd, "run", *words, str(linux.image("6.1"))]

    return lambda: Session(command)


@contextmanager
def load(start: Callable[[], Session]) -> Iterator[Session]:
    """Boot the guest, and start its load."""
    with start() as guest:
        guest.wait_for(PROMPT)
        guest.shell("mkdir /mnt; mount -t tmpfs none /run 2>/dev/null")
        made = guest.shell(
            "/sbin/mke2fs -q -t ext4 -b 4096 /dev/vda && mount /dev/vda /mnt && echo ok"
        )
        assert made == "ok"
        guest.shell(f">/log; ({LOAD}) & load=$!")
        turns(guest, 2)
        yield guest


def turns(guest: Session, more: int) -> None:
    """Wait for more good turns of the load."""
    wanted = good(guest) + more
    deadline = time.monotonic() + float(DEADLINE_S) * 2
    while good(guest) < wanted:
        assert time.monotonic() < deadline


def good(guest: Session) -> int:
    """Return the number of good turns; there are no others."""
    assert guest.shell("grep -c bad /log") in ("0", ""), guest.shell("cat /log")
    said = guest.shell("grep -c good /log")
    return int(said or "0")


def finish(guest: Session, disk: Path) -> None:
    """End the load and the guest; compare its files with those on the disk."""
    guest.shell("touch /stop; wait $load")
    assert good(guest) > 0
    names = [f"f{n}" for n in range(4)]
    lines = guest.shell(f"cd /mnt; sha256sum {' '.join(names)}; cd /").splitlines()
    sums = {name: summed for summed, name in map(str.split, lines)}
    guest.shell("umount /mnt")
    guest.type(b"poweroff -f\n")
    assert guest.end() == 0
    ext4.fsck(disk)
    assert sums == {name: ext4.sha256(disk, name) for name in names}


def test_data_is_whole_whatever_takes_the_queues_back(
    start: Callable[[], Session], tell: Tell, disk: Path
) -> None:
    with load(start) as guest:
        for _ in range(PAUSES):
            tell("pause", "-n", NAME)
            tell("resume", "-n", NAME)
        turns(guest, 1)
        tell("balloon", "-n", NAME, "-i", "32", "--wait", DEADLINE_S)
        tell("memory", NAME, "384", "--wait", DEADLINE_S)
        turns(guest, 1)
        tell("balloon", "-n", NAME, "--size", "0", "--wait", DEADLINE_S)
        tell("memory", NAME, "256", "--wait", DEADLINE_S)
        turns(guest, 1)
        # The driver resets the entropy device amid its requests.
        found = guest.shell("ls /sys/bus/virtio/drivers/virtio_rng | grep ^virtio")
        for _ in range(3):
            guest.shell(
                f"echo {found} >/sys/bus/virtio/drivers/virtio_rng/unbind;"
                f" echo {found} >/sys/bus/virtio/drivers/virtio_rng/bind"
            )
        turns(guest, 1)
        (vm,) = json.loads(tell("stat", "--json", "-n", NAME))["vms"]
        assert vm["exits"]["virtio doorbell write"] > 0
        finish(guest, disk)


@pytest.mark.matrix  # 80 s
def test_incremental_saves_amid_io_are_whole(
    start: Callable[[], Session], pyvmm_cmd: list[str], tell: Tell, disk: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"{n}.snap" for n in range(3)]
    with load(start) as guest:
        tell("save", "--resume", "--track", NAME, str(files[0]))
        turns(guest, 1)
        tell("save", "--resume", "--parent", str(files[0]), NAME, str(files[1]))
        turns(guest, 1)
        tell("save", "--parent", str(files[1]), NAME, str(files[2]))
        assert guest.end() == 0

    with Session([*pyvmm_cmd, "restore", str(files[2])]) as guest:
        guest.type(b"\n")
        guest.wait_for(PROMPT)
        turns(guest, 2)
        finish(guest, disk)


@pytest.mark.matrix
def test_what_the_guest_has_flushed_is_on_the_disk_after_kill_9(
    start: Callable[[], Session], tell: Tell, disk: Path
) -> None:
    with load(start) as guest:
        guest.shell("dd if=/dev/urandom of=/mnt/kept bs=4k count=256 conv=fsync 2>/dev/null")
        kept = guest.shell("sha256sum </mnt/kept").split()[0]
        (vm,) = (vm for vm in json.loads(tell("list", "--json"))["vms"] if vm["name"] == NAME)
        if is_local(HostSettings()):
            os.kill(vm["pid"], signal.SIGKILL)
        else:
            tell("host", "exec", "--", "kill", "-9", str(vm["pid"]))
        assert guest.end() == 128 + signal.SIGKILL

    ext4.recover(disk)
    assert kept == ext4.sha256(disk, "kept")
