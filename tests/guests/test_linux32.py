"""Debian's 32-bit Arm kernel in AArch32: from its zImage to a shell on a virtio console."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import linux32
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


NAMES = ("CPSR", "SP_svc", "LR_usr", "TTBR0", "DFSR", "TPIDRPRW")


def check_boot(pyvmm_cmd: list[str], tmp_path: Path, *where: str) -> str:
    """Boot the kernel to its shell, and return its registers as `debug -d` shows them."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(linux32.initramfs())
    command = [*pyvmm_cmd, "run", *where, "--aarch32", "--console", "virtio", "-m", "256",
               "-c", "1", "--name", "thumb", "-i", str(initrd), "-p", "quiet"]  # fmt: skip

    with Session([*command, str(linux32.image())]) as guest:
        greeting = guest.wait_for(PROMPT).decode()
        machine = guest.shell("uname -m")
        shown = output(pyvmm_cmd, "debug", "-n", "thumb", "-d")
        guest.type(b"poweroff -f\n")
        code = guest.end()

    assert "-armmp on 1 CPUs" in greeting
    assert machine in ("armv7l", "armv8l")
    assert code == 0
    return shown


def output(pyvmm_cmd: list[str], *words: str) -> str:
    """Return the output of a command."""
    return subprocess.run([*pyvmm_cmd, *words], capture_output=True, text=True, check=True).stdout


def check_names(shown: str) -> None:
    """Check that registers have their AArch32 names, and those alone."""
    for name in NAMES:
        assert f" {name} " in shown, shown
    assert "X19" not in shown
    assert "ESR_EL1" not in shown


def test_debians_armmp_kernel_boots_to_a_shell_and_is_shown_by_its_own_names(
    pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    check_names(check_boot(pyvmm_cmd, tmp_path))


@pytest.mark.matrix
@pytest.mark.parametrize("host", ["6.1", "6.12", "7.2"], indirect=True)
def test_32_bit_kernel_boots_and_is_restored_on_each_host_kernel(
    host: list[str], pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "thumb.snap"
    check_names(check_boot(pyvmm_cmd, tmp_path, *host))

    command = [*pyvmm_cmd, "run", *host, "--aarch32", "--console", "virtio", "-m", "256", "-c", "2",
               "--name", "saved", "-i", str(tmp_path / "initrd"), "-p", "quiet"]  # fmt: skip
    with Session([*command, str(linux32.image())]) as guest:
        guest.wait_for(PROMPT)
        guest.shell("known=before")
        output(pyvmm_cmd, "save", "saved", str(file))
        assert guest.end() == 0
    check_names(output(pyvmm_cmd, "snapshot", "show", str(file)))
    with Session([*pyvmm_cmd, "restore", *host, str(file)]) as guest:
        assert guest.shell("echo $known on $(nproc)") == "before on 2"
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0
