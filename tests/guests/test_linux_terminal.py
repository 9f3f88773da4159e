"""Linux on a virtio console in a user's terminal: keys, the window's size, the end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests import linux
from tests.tmux import Tmux

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_terminal_serves_a_linux_shell_and_is_restored(
    pyvmm_cmd: list[str], tmux: Path, tmp_path: Path
) -> None:
    initrd, before, after = (tmp_path / name for name in ("initrd", "before", "after"))
    initrd.write_bytes(linux.initramfs(linux.virtio_modules("6.1")))
    run = [*pyvmm_cmd, "run", "--console=virtio", "-c", "1", "-m", "256", "-pquiet"]
    command = shlex.join([*run, "-i", str(initrd), str(linux.image("6.1"))])
    with Tmux(tmux, rows=30, columns=100) as terminal:
        terminal.enter("$", f"stty -g >{before}; {command}; code=$?; stty -g >{after}")

        terminal.enter("/ #", "stty size")
        terminal.expect("30 100")
        terminal.enter("/ #", "ecko typed", *["Left"] * 7, "BSpace", "h")
        terminal.expect("typed")
        terminal.enter("/ #", "there", "C-a", "C-a", "echo hello ")
        terminal.expect("hello there")
        terminal.enter("/ #", "sh -c 'echo sleeping; sleep 1000'")
        terminal.expect("sleeping")
        terminal.type("C-c")
        terminal.enter("/ #", "echo interrupted $?")
        terminal.expect("interrupted 130")
        terminal.resize(40, 120)
        terminal.enter("/ #", "until stty size | grep '40 120'; do sleep 0.1; done")
        terminal.expect("40 120")
        terminal.expect("/ #")
        terminal.type("C-a", "x")

        terminal.enter(
            "/ # $", "echo ended with $code"
        )  # the guest's prompt is still on the screen
        terminal.expect("ended with 0")
    assert after.read_text() == before.read_text()
