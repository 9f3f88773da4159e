"""Linux is saved and restored, also during the kernel's own stress of SVE."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import linux, selftests
from tests.linux import PROMPT, Session

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(3600)]

TIMED_OUT = 124


@pytest.mark.parametrize("console", ["serial", "virtio"])
def test_restored_shell_keeps_its_state(pyvmm_cmd: list[str], tmp_path: Path, console: str) -> None:
    initrd, file = tmp_path / "initrd", tmp_path / "linux.snap"
    initrd.write_bytes(linux.initramfs(linux.virtio_modules("6.1")))
    command = [*pyvmm_cmd, "run", f"--console={console}", "-c", "2", "-m", "128", "-pquiet",
               "-i", str(initrd), "--name", "shell", str(linux.image("6.1"))]  # fmt: skip
    with Session(command) as guest:
        guest.wait_for(PROMPT)
        guest.shell("known=before; sleep 1000 & echo kept >/file")
        before = int(guest.shell("date +%s"))
        subprocess.run([*pyvmm_cmd, "save", "shell", str(file)], check=True)
        assert guest.end() == 0

    with Session([*pyvmm_cmd, "restore", str(file)]) as guest:
        assert guest.shell("echo $known $(cat /file) $(pidof sleep | wc -w)") == "before kept 1"
        assert 0 <= int(guest.shell("date +%s")) - before < 60
        assert guest.shell("dmesg | grep -ci 'detected stalls\\|soft lockup\\|Oops:'") == "0"
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


def test_linux_under_fp_stress_survives_ten_saves_and_restores(
    pyvmm_cmd: list[str], fp: Path, tmp_path: Path
) -> None:
    initrd, file = tmp_path / "initrd", tmp_path / "linux.snap"
    files = {**linux.virtio_modules("6.1"), **selftests.in_guest(fp)}
    initrd.write_bytes(linux.initramfs(files))
    command = [*pyvmm_cmd, "run", "--console=virtio", "-c", "4", "-m", "256", "-pquiet",
               "-i", str(initrd), "--name", "stressed", str(linux.image("6.1"))]  # fmt: skip
    said = b""
    with Session(command) as guest:
        guest.wait_for(PROMPT, timeout_s=300)
        guest.type(b"date +%s; (cd /fp && exec ./fp-stress -t 60)\n")
        said += guest.wait_for(b"Started", timeout_s=300)
        subprocess.run([*pyvmm_cmd, "save", "stressed", str(file)], check=True)
        assert guest.end() == 0
        said += guest.output
    for cycle in range(9):
        with Session([*pyvmm_cmd, "restore", str(file), "--timeout", "4", "--save-on-exit",
                      str(file)]) as guest:  # fmt: skip
            assert guest.end() == TIMED_OUT, cycle
            said += guest.output
    with Session([*pyvmm_cmd, "restore", str(file)]) as guest:
        said += guest.wait_for(PROMPT, timeout_s=2400)
        after = guest.shell("date +%s")

    text = said.decode(errors="replace").replace("\r", "")
    assert re.search(r"Terminated by signal 15, no error, iterations=[1-9]", text), text[-4000:]
    assert re.search(r"^# Totals: pass:\d+ fail:0 xfail:0 xpass:0 skip:0 error:0$", text, re.M)
    assert "ismatch" not in text
    before = re.search(r"^(\d{10})$", text, re.MULTILINE)
    assert before
    # Its clock advanced by the time that it ran, and no more.
    assert 0 < int(after) - int(before[1]) < 3600
