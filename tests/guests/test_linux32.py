"""Debian's 32-bit Arm kernel in AArch32: from its zImage to a shell on a virtio console."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import linux32
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_debians_armmp_kernel_boots_to_a_shell_and_is_shown_by_its_own_names(
    pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(linux32.initramfs())
    command = [*pyvmm_cmd, "run", "--aarch32", "--console", "virtio", "-m", "256", "-c", "1",
               "--name", "thumb", "-i", str(initrd), "-p", "quiet"]  # fmt: skip

    with Session([*command, str(linux32.image())]) as guest:
        greeting = guest.wait_for(PROMPT).decode()
        machine = guest.shell("uname -m")
        shown = subprocess.run(
            [*pyvmm_cmd, "debug", "-n", "thumb", "-d"], capture_output=True, text=True, check=True
        )
        guest.type(b"poweroff -f\n")
        code = guest.end()

    assert "-armmp on 1 CPUs" in greeting
    assert machine in ("armv7l", "armv8l")
    assert code == 0
    for name in ("CPSR", "SP_svc", "LR_usr", "TTBR0", "DFSR", "TPIDRPRW"):
        assert f" {name} " in shown.stdout, shown.stdout
    assert "X19" not in shown.stdout
    assert "ESR_EL1" not in shown.stdout
