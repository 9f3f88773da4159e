"""Debian's Linux 7.2 as a hypervisor in a guest (L1), and pyvmm in it with guests of its own (L2).

An L1 that runs an L2 is saved, ended, and restored in a new process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import l1, linux
from tests.e2e.conftest import FIRST_S, Pyvmm
from tests.linux import Session

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.matrix,  # minutes of emulation
    pytest.mark.timeout(3 * FIRST_S),
]

KERNEL = "7.2"
PROMPT = b"~ # "
WORDS = "quiet cryptomgr.notests norandmaps"


class Shell(Session):
    """The console of L1."""

    def run(self, command: str) -> str:
        """Run a command at L1's prompt, and return its output and its exit code."""
        self.type(f"{command}; echo code=$?\n".encode())
        self.wait_for(b"echo code=$?")  # the echo of what was typed
        return self.wait_for(PROMPT, FIRST_S).decode().replace("\r", "")


def test_linux_as_l1_runs_guests_of_its_own_and_is_restored_while_it_runs_one(
    nested: tuple[str, ...], pyvmm: Pyvmm, pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    initrd, saved = tmp_path / "l1.img", tmp_path / "l1.snap"
    usr = l1.make(KERNEL, initrd)
    run = [*pyvmm_cmd, "run", *nested, "--nested", "-c", "1", "-m", "1G", "--name", "test-l1",
           "-d", f"{usr},ro", "-i", str(initrd), "-p", WORDS, str(linux.image(KERNEL))]  # fmt: skip

    with Shell(run) as shell:
        shell.wait_for(PROMPT, FIRST_S)
        assert "/dev/kvm\n" in shell.run("ls /dev/kvm")
        assert "Hello from EL1 on vCPU 0" in shell.run("pyvmm run hello")
        lengths = shell.run("pyvmm run -c 2 --sve-vls 128,256 sve-vls")
        assert "SVE vector lengths: 128 256\ncode=0\n" in lengths
        shell.type(b"pyvmm run sve-snapshot -c 2 -m 16 -p patience=300\n")
        shell.wait_for(b"at work", FIRST_S)
        done = pyvmm("save", "test-l1", str(saved), timeout=FIRST_S)
        assert done.returncode == 0, done.stderr
        shell.end(FIRST_S)

    with Shell([*pyvmm_cmd, "restore", *nested, "--trust", str(saved)]) as shell:
        shell.type(b"sq")
        ended = shell.wait_for(PROMPT, FIRST_S).decode()
        assert ended.count("failures=0") == 2
        assert "vl=2048" in ended
        assert "Hello from EL1 on vCPU 0" in shell.run("pyvmm run hello")
