"""The virtio console on both transports; the judge is Linux's virtio_console driver."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from pyvmm.layout import MIB
from tests import linux, selftests
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SIZE = 16 * MIB
BLOCK = 64 << 10  # bytes
STALL_S = 1
FLOW_S = 600.0
TYPED = b"typed before there was a driver"

Boot = Callable[..., Session]


@pytest.fixture
def boot(pyvmm_cmd: list[str], tmp_path: Path) -> Boot:
    """Boot a kernel with a virtio console."""

    def boot_kernel(
        version: str, *options: str, files: Mapping[str, bytes] = MappingProxyType({})
    ) -> Session:
        initrd = tmp_path / "initrd"
        initrd.write_bytes(linux.initramfs({**linux.virtio_modules(version), **files}))
        command = [*pyvmm_cmd, "run", "-i", str(initrd), "-m", "256", "--console=virtio"]
        return Session([*command, *options, "-pquiet", str(linux.image(version))])

    return boot_kernel


def check_driver(guest: Session, *, modern: bool) -> None:
    """Check that the console's driver has the input from before its start, and its features."""
    guest.wait_for(b"init: 6.1.")
    guest.wait_for(PROMPT)
    guest.wait_for(TYPED)
    guest.wait_for(PROMPT)
    assert "hvc0" in guest.shell("cat /proc/consoles")
    assert "Edge      virtio0" in guest.shell("cat /proc/interrupts")
    features = guest.shell("cat /sys/bus/virtio/devices/virtio0/features")
    negotiated = {bit for bit, value in enumerate(features) if value == "1"}
    assert negotiated == {0, 28, 29} | ({32} if modern else set())


@pytest.mark.matrix
def test_linux_has_a_shell_on_its_virtio_console_of_the_legacy_transport(boot: Boot) -> None:
    with boot("6.1", "-c", "2", "--virtio-transport=mmio-legacy") as guest:
        guest.type(b"echo " + TYPED + b"\n")
        check_driver(guest, modern=False)
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


def test_stress_recipe_of_the_kernel_tree_works_unchanged(
    pyvmm_cmd: list[str], fp: Path, tmp_path: Path
) -> None:
    """Source: tools/testing/selftests/arm64/fp/README, with pyvmm for lkvm."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(linux.initramfs({**linux.virtio_modules("6.1"), **selftests.in_guest(fp)}))
    (tmp_path / "Image").symlink_to(linux.image("6.1"))
    recipe = "run --console=virtio -pconsole=hvc0 --sve Image"
    environment = {**os.environ, "PYVMM_RUN_INITRD": str(initrd)}

    with Session([*pyvmm_cmd, *recipe.split()], cwd=tmp_path, env=environment) as guest:
        guest.type(b"echo " + TYPED + b"\n")
        check_driver(guest, modern=True)
        assert guest.shell("grep -cw sve /proc/cpuinfo") == guest.shell("nproc")
        assert selftests.probed(guest.shell("/fp/sve-probe-vls"))[0] == 128
        said = guest.shell("timeout 2 /fp/vlset --inherit 16 /fp/sve-test")
        assert "Vector length:\t128 bits\n" in said
        assert "no error" in said
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


@pytest.mark.matrix
def test_input_arrives_whole_when_the_guests_reader_stalls(boot: Boot) -> None:
    data = noise(SIZE)
    part = SIZE // 4 // BLOCK
    with boot("6.1", "-c", "1") as guest:
        guest.wait_for(PROMPT)

        guest.shell("stty raw -echo")
        read = f"dd bs={BLOCK} count={part} iflag=fullblock 2>/dev/null; sleep {STALL_S}"
        guest.type(f"echo ready; for n in 1 2 3 4; do {read}; done | sha256sum\n".encode())
        guest.wait_for(b"ready\n")
        guest.type(data)
        summed = guest.wait_for(PROMPT, timeout_s=FLOW_S)

    assert summed.split()[0].decode() == hashlib.sha256(data).hexdigest()


@pytest.mark.matrix
def test_output_arrives_whole_when_the_reader_stalls(boot: Boot) -> None:
    data = noise(SIZE)
    with boot("6.1", "-c", "1", files={"data": data}) as guest:
        guest.wait_for(PROMPT)

        guest.shell("stty raw -echo")
        summed = guest.shell("sha256sum /data")
        guest.type(b"cat /data\n")
        arrived = guest.wait_for(data[:64])[-64:]
        for at in range(SIZE // 4, SIZE + 1, SIZE // 4):
            arrived += guest.wait_for(data[at - 64 : at], timeout_s=FLOW_S)
            time.sleep(STALL_S)
        guest.wait_for(PROMPT)

    assert summed.split()[0] == hashlib.sha256(arrived).hexdigest()
    assert arrived == data


def noise(size: int) -> bytes:
    """Return random bytes without pyvmm's Ctrl-A, and without Ctrl-O, SysRq of Linux's hvc."""
    return random.Random(7).randbytes(size + size // 64).translate(None, b"\x01\x0f")[:size]
