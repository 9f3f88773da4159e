"""Linux's virtio_console driver, on both transports: it judges ours."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.host import kernel
from pyvmm.host.progress import Progress
from pyvmm.host.settings import KERNEL_SUITES
from pyvmm.layout import MIB
from tests import linux
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# The console is a module of Debian's kernels: nothing is open on it before it is loaded.
INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod $module; done
exec </dev/hvc0 >/dev/hvc0 2>&1
echo "init: $(uname -r) on $(nproc) CPUs"
exec sh
"""

Boot = Callable[..., Session]


def initramfs(version: str) -> bytes:
    """The driver's modules, named in the order they are to be loaded."""
    modules = kernel.find(version, Progress()).modules()
    wanted = [item for item in modules.items() if item[0].startswith("virtio")]
    return linux.initramfs(
        INIT, {f"modules/{n}-{name}.ko": data for n, (name, data) in enumerate(wanted)}
    )


@pytest.fixture
def boot(pyvmm_cmd: list[str], tmp_path: Path) -> Boot:
    """Boot a kernel with a virtio console."""

    def boot_kernel(version: str, *options: str) -> Session:
        initrd = tmp_path / "initrd"
        initrd.write_bytes(initramfs(version))
        command = [*pyvmm_cmd, "run", "-i", str(initrd), "-m", "256", "--console=virtio"]
        return Session([*command, *options, "-pquiet", str(linux.image(version))])

    return boot_kernel


@pytest.mark.parametrize("transport", ["mmio", "mmio-legacy"])
def test_linux_has_a_shell_on_its_virtio_console(boot: Boot, transport: str) -> None:
    with boot("6.1", "-c", "2", f"--virtio-transport={transport}") as guest:
        guest.type(b"echo typed before there was a driver\n")
        guest.wait_for(b"init: 6.1.")
        guest.wait_for(PROMPT)
        guest.wait_for(b"typed before there was a driver")
        guest.wait_for(PROMPT)

        assert "hvc0" in guest.shell("cat /proc/consoles")
        assert "Edge      virtio0" in guest.shell("cat /proc/interrupts")
        features = guest.shell("cat /sys/bus/virtio/devices/virtio0/features")
        negotiated = {bit for bit, value in enumerate(features) if value == "1"}
        assert negotiated == {0, 28, 29} | ({32} if transport == "mmio" else set())
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


@pytest.mark.matrix
@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("version", KERNEL_SUITES)
def test_linux_of_every_version_has_one(boot: Boot, version: str, vcpus: int) -> None:
    with boot(version, "-c", str(vcpus)) as guest:
        guest.wait_for(PROMPT)

        assert guest.shell("uname -r").startswith(version)
        assert guest.shell("nproc") == str(vcpus)
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


@pytest.mark.matrix
def test_sixteen_mebibytes_each_way_arrive_whole(boot: Boot) -> None:
    data = random.Random(7).randbytes(17 * MIB).replace(b"\x01", b"")[: 16 * MIB]
    with boot("6.1", "-c", "1") as guest:
        guest.wait_for(PROMPT)

        guest.shell("stty raw -echo")
        guest.type(b"echo ready; head -c %d >/tmp; sha256sum /tmp\n" % len(data))
        guest.wait_for(b"ready\n")
        guest.type(data)
        summed = guest.wait_for(b"/tmp", timeout_s=600)
        guest.wait_for(PROMPT)
        guest.type(b"cat /tmp; echo done\n")
        back = guest.wait_for(data[-64:] + b"done\n", timeout_s=600)

        assert hashlib.sha256(data).hexdigest().encode() in summed
        assert back.removesuffix(b"done\n")[-len(data) :] == data
