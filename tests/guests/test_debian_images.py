"""Debian's own files for arm64 machines: each boots, or is refused by what it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm.host.parts import tools
from pyvmm.host.progress import Progress
from tests import linux
from tests.linux import Session

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(1200)]

NETBOOT = "debian-installer-12-netboot-arm64"
INSTALLER = "usr/lib/debian-installer/images/12/arm64/text/debian-installer/arm64"
SUNXI = "u-boot-sunxi:arm64"
UEFI = "pyvmm runs no firmware"

# Package, file, what it is, the hint
NAMED = (
    ("u-boot-qemu", "usr/lib/u-boot/qemu_arm64/u-boot.bin", "linked for address 0x0", UEFI),
    ("u-boot-qemu", "usr/lib/u-boot/qemu-riscv64/uboot.elf", "an ELF for RISC-V", "for arm64"),
    ("u-boot-rpi:arm64", "usr/lib/u-boot/rpi_3/u-boot.bin", "linked for address 0x80000", UEFI),
    (SUNXI, "usr/lib/u-boot/pinebook/u-boot.bin", "linked for address 0x4a000000", UEFI),
    (SUNXI, "usr/lib/u-boot/pinebook/sunxi-spl.bin", "Allwinner's boot ROM", UEFI),
    (SUNXI, "usr/lib/u-boot/pinebook/sun50i-a64-pinebook.dtb", "a device tree blob", "a kernel"),
    ("qemu-efi-aarch64", "usr/share/qemu-efi-aarch64/QEMU_EFI.fd", "UEFI firmware (EDK2)", UEFI),
    ("qemu-efi-aarch64", "usr/share/AAVMF/AAVMF_CODE.fd", "UEFI firmware (EDK2)", UEFI),
    ("qemu-efi-aarch64", "usr/share/AAVMF/AAVMF_VARS.fd", "all zeros", "how the file was made"),
    (NETBOOT, f"{INSTALLER}/grubaa64.efi", "an EFI program for AArch64", "an arm64 Linux Image"),
    (NETBOOT, f"{INSTALLER}/initrd.gz", "(gzip) is an initramfs", "give it with -i"),
)


def file_of(package: str, path: str) -> Path:
    """Return a file of a Debian package."""
    if ":" in package:
        return linux.packages(package.replace(":", "-"), tools.TOOLS_SUITE, package) / path
    return tools.tree(package, tools.TOOLS_SUITE, [package], Progress()) / path


@pytest.mark.parametrize(("package", "path", "what", "hint"), NAMED)
def test_run_names_a_file_of_debian_that_does_not_boot(
    pyvmm_cmd: list[str], package: str, path: str, what: str, hint: str
) -> None:
    command = [*pyvmm_cmd, "run", "--timeout", "60", "-c", "1", "-m", "256"]

    done = subprocess.run(
        [*command, str(file_of(package, path))], stdin=subprocess.DEVNULL, capture_output=True,
        text=True,
    )  # fmt: skip

    assert done.returncode == 2, done.stderr
    assert what in done.stderr
    assert hint in done.stderr


@pytest.mark.parametrize(
    "path", ["qemu_arm64/uboot.elf", "qemu_arm/u-boot.bin", "qemu-x86_64/u-boot.rom"]
)
def test_run_mentions_uboot_that_it_cannot_refuse(pyvmm_cmd: list[str], path: str) -> None:
    image = file_of("u-boot-qemu", f"usr/lib/u-boot/{path}")

    done = subprocess.run(
        [*pyvmm_cmd, "run", "--timeout", "5", str(image)], stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 124
    assert f"{image} contains U-Boot 20" in done.stderr


def test_debians_installer_starts(pyvmm_cmd: list[str]) -> None:
    kernel, initrd = (file_of(NETBOOT, f"{INSTALLER}/{name}") for name in ("linux", "initrd.gz"))
    command = [*pyvmm_cmd, "run", "-c", "1", "-m", "512", "-i", str(initrd), str(kernel)]

    with Session(command) as session:
        session.wait_for(b"activates buttons", timeout_s=900)
