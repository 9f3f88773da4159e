"""Linux guests: Debian's kernels boot, see their machine, and end."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import linux, selftests
from tests.guests.control import check_control
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EARLYCON = "earlycon=uart8250,mmio,0x1000000"
NAME = "named-linux"
# Typed before the emulated host has the command.
COMMAND = b"echo 0123456789abcdefghijklmnopqrstuvwxyz $((40 + 2))"
ANSWER = b"0123456789abcdefghijklmnopqrstuvwxyz 42\r\n"

Boot = Callable[..., Session]


@pytest.fixture(scope="module")
def initrd(fp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linux") / "initrd"
    path.write_bytes(linux.initramfs(selftests.in_guest(fp)))
    return path


@pytest.fixture
def boot(pyvmm_cmd: list[str], initrd: Path) -> Boot:
    """Boot a kernel to its shell's prompt."""

    def boot_kernel(image: Path, *options: str, params: str = "quiet") -> Session:
        command = [*pyvmm_cmd, "run", "-i", str(initrd), "-m", "256", *options]
        return Session([*command, f"-p{params}", str(image)])

    return boot_kernel


def boot_log(guest: Session) -> str:
    """Type a line before the boot, and return the boot's log if the shell gets the whole line."""
    guest.type(COMMAND + b"\n")
    log = guest.wait_for(b"\n" + ANSWER)
    assert COMMAND + b"\r\n" in log
    guest.wait_for(PROMPT)
    return log.decode()


def test_linux_boots_to_its_shell_with_sve_is_controlled_and_switches_off(
    boot: Boot, pyvmm_cmd: list[str]
) -> None:
    options = ["-c", "2", "--sve-vls=128,256", "--pmu", "--name", NAME]
    with boot(linux.image("6.1"), *options, params=EARLYCON) as guest:
        log = boot_log(guest)

        assert "Machine model: pyvmm" in log
        assert "printk: bootconsole [uart8250] enabled" in log
        assert "arm-pv: using stolen time PV" in log
        assert "init: 6.1." in log
        assert "on 2 CPUs" in log
        assert guest.shell("grep -cw sve /proc/cpuinfo") == "2"
        assert selftests.probed(guest.shell("/fp/sve-probe-vls")) == [128, 256]
        assert guest.shell("cat /proc/cmdline") == f"console=ttyS0 root=/dev/vda rw {EARLYCON}"
        assert "armv8_pmuv3" in guest.shell("ls /sys/bus/event_source/devices")
        check_control(guest, pyvmm_cmd, NAME)
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


def test_linux_sees_no_sve_when_it_is_off_and_resets(boot: Boot, tmp_path: Path) -> None:
    packed = tmp_path / "Image.gz"
    packed.write_bytes(gzip.compress(linux.image("6.1").read_bytes(), 1))

    with boot(packed, "-c", "1", "--no-sve", "--irqchip=gicv3-its", "-m", "256@4G") as guest:
        boot_log(guest)

        assert guest.shell("grep -cw sve /proc/cpuinfo") == "0"
        assert "100000000-10fffffff : System RAM" in guest.shell("cat /proc/iomem")
        assert "ITS@" in guest.shell("dmesg | grep ITS")
        guest.type(b"reboot -f\n")
        assert guest.end() == 0


def zboot(kind: bytes, payload: bytes) -> bytes:
    """Make an EFI zboot image around packed data."""
    return (
        struct.pack("<4s4sII8x32s", b"MZ\0\0", b"zimg", 64, len(payload), kind).ljust(64, b"\0")
        + payload
    )


@pytest.mark.matrix
def test_kaslr_seed_moves_the_kernel(boot: Boot) -> None:
    places = []
    for options in ([], ["--kaslr-seed", "1"], ["--kaslr-seed=0x123456789abcdef"]):
        with boot(linux.image("6.1"), "-c", "1", *options) as guest:
            guest.wait_for(PROMPT)
            places.append(guest.shell("grep ' _stext$' /proc/kallsyms"))

    assert len(set(places)) == 3


@pytest.mark.matrix
def test_zboot_image_boots(boot: Boot, tmp_path: Path) -> None:
    packed = gzip.compress(linux.image("6.12").read_bytes(), 1)
    image = tmp_path / "vmlinuz.efi"
    image.write_bytes(zboot(b"gzip", packed))

    with boot(image, "-c", "1") as guest:
        guest.wait_for(PROMPT)

        assert guest.shell("uname -r").startswith("6.12")
