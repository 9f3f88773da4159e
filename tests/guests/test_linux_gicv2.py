"""Linux and every virtio device with a GICv2, saved and restored; the judges are its drivers."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host import HostSettings, is_local
from pyvmm.layout import MIB
from tests import linux
from tests.linux import PROMPT, Session
from tests.runtime import own_runtime_dir

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(1800)]

NAME = "gicv2-linux"
VCPUS = 8  # the most that a GICv2 can have
RAM = 256  # MiB
MORE = 128  # MiB to plug
DISK = 16 * MIB
DRIVERS = ("virtio_mmio", "virtio_console", "virtio_blk", "virtio_rng", "virtio_balloon",
           "virtio_mem")  # fmt: skip
WAIT = ("--wait", "300")


@pytest.fixture(scope="module", params=["6.1", "6.12", "7.2"])
def host(request: pytest.FixtureRequest, pyvmm_cmd: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Start a host with a GICv2; return its kernel's version and its options."""
    if is_local(HostSettings()):
        pytest.skip("commands run on this machine's own KVM")
    where = ["--host-model", "gicv2", "--host-kernel", request.param]
    with own_runtime_dir("host"):
        subprocess.run([*pyvmm_cmd, "host", "start", *where], check=True)
        yield request.param, where


def tell(command: list[str], *words: str) -> str:
    """Run a command that controls the VM, and return its output."""
    return subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout


def interrupts(guest: Session) -> dict[str, int]:
    """Return how often each device has interrupted Linux, by the device's name."""
    found = {}
    for line in guest.shell("cat /proc/interrupts").splitlines():
        row = re.fullmatch(r" *\w+:((?: +\d+)+) +GIC-0 +\d+ +\w+ +(\S+)", line.rstrip())
        if row:
            found[row[2]] = sum(map(int, row[1].split()))
    return found


def check_devices(guest: Session, disk: Path, command: list[str]) -> None:
    """Use each device, and check that its interrupts arrive at the GICv2."""
    before = interrupts(guest)

    written = "dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null; sync"
    guest.shell(written + "; echo 3 >/proc/sys/vm/drop_caches")
    summed = guest.shell("sha256sum /dev/vda").split()[0]
    assert (
        guest.shell("dd if=/dev/hwrng bs=64 count=16 iflag=fullblock 2>/dev/null | wc -c") == "1024"
    )
    tell(command, "balloon", "-n", NAME, "-i", "32", *WAIT)
    tell(command, "balloon", "-n", NAME, "--size", "0", *WAIT)
    tell(command, "memory", NAME, str(RAM + MORE), *WAIT)
    tell(command, "memory", NAME, str(RAM), *WAIT)

    assert summed == hashlib.sha256(disk.read_bytes()).hexdigest()
    after = interrupts(guest)
    drivers = guest.shell("ls -d /sys/bus/virtio/drivers/*/virtio*").split()
    assert {Path(path).parent.name for path in drivers} == {
        "virtio_console", "virtio_blk", "virtio_rng", "virtio_balloon", "virtio_mem",
    }  # fmt: skip
    for name in (Path(path).name for path in drivers):
        assert after[name] > before[name], (name, before, after)
    assert after["arch_timer"] > before["arch_timer"]


def check_cpus(guest: Session) -> None:
    """Run a program on each CPU: Linux moves it there by an SGI."""
    online = range(VCPUS)
    ran = guest.shell(f"for n in $(seq 0 {VCPUS - 1}); do taskset -c $n echo on $n; done")
    assert ran.splitlines() == [f"on {n}" for n in online]
    assert guest.shell("dmesg | grep -ci 'detected stalls\\|soft lockup\\|Oops:'") == "0"


def test_linux_uses_every_device_before_and_after_a_restore(
    host: tuple[str, list[str]], pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    kernel, where = host
    initrd, disk, file = (tmp_path / name for name in ("initrd", "disk", "guest.snap"))
    initrd.write_bytes(linux.initramfs(linux.modules(kernel, *DRIVERS)))
    disk.write_bytes(bytes(DISK))
    command = [*pyvmm_cmd, "run", *where, "--console=virtio", "-c", str(VCPUS), "-m", str(RAM),
               "-d", str(disk), "--rng", "--balloon", "--hotplug", str(MORE), "--name", NAME,
               "-pquiet", "-i", str(initrd), str(linux.image(kernel))]  # fmt: skip

    with Session(command) as guest:
        guest.wait_for(PROMPT, timeout_s=900.0)
        assert guest.shell("nproc") == str(VCPUS)
        assert "hvc0" in guest.shell("cat /proc/consoles")
        check_cpus(guest)
        check_devices(guest, disk, pyvmm_cmd)
        guest.shell("known=before; sleep 10000 & echo kept >/file")
        tell(pyvmm_cmd, "save", NAME, str(file))
        assert guest.end() == 0

    with Session([*pyvmm_cmd, "restore", *where, str(file)]) as guest:
        assert guest.shell("echo $known $(cat /file) $(pidof sleep | wc -w)") == "before kept 1"
        check_cpus(guest)
        check_devices(guest, disk, pyvmm_cmd)
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0

    shown = json.loads(tell(pyvmm_cmd, "snapshot", "show", "--json", str(file)))
    assert shown["state"]["gic"]["kind"] == "gicv2"


def test_each_of_eight_vcpus_gets_its_interrupts_and_a_ninth_is_refused(
    host: tuple[str, list[str]], pyvmm_cmd: list[str]
) -> None:
    _, where = host

    done = subprocess.run(
        [*pyvmm_cmd, "run", *where, "-c", "8", "smp"], capture_output=True, text=True
    )
    refused = subprocess.run(
        [*pyvmm_cmd, "run", *where, "-c", "9", "smp"], capture_output=True, text=True
    )

    assert (done.stdout.splitlines()[-1], done.stderr, done.returncode) == ("8 vCPUs", "", 0)
    assert "-c 9: this host gives one VM at most 8 vCPUs" in refused.stderr
    assert (refused.stdout, refused.returncode) == ("", 3)
