"""Directories of the user in a Linux guest, through its virtiofs driver."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.host.settings import KERNEL_SUITES
from pyvmm.layout import MIB
from tests import linux
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels and programs, and to make the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

Boot = Callable[..., Session]


@pytest.fixture
def boot(pyvmm_cmd: list[str], tmp_path: Path) -> Boot:
    """Boot a kernel with shared directories."""

    def boot_kernel(version: str, *options: str) -> Session:
        initrd = tmp_path / "initrd"
        drivers = ("virtio_mmio", "virtio_console", "virtiofs")
        initrd.write_bytes(linux.initramfs(linux.modules(version, *drivers)))
        command = [*pyvmm_cmd, "run", "-i", str(initrd), "-m", "256", "-pquiet"]
        guest = Session([*command, *options, str(linux.image(version))])
        guest.wait_for(PROMPT)
        guest.shell("mkdir /a /b")
        return guest

    return boot_kernel


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "a directory"
    directory.mkdir()
    (directory / "file").write_text("of the user\n")
    return directory


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_guest_reads_and_writes_a_directory(boot: Boot, shared: Path, tmp_path: Path) -> None:
    content = os.urandom(2 * MIB)
    (shared / "big").write_bytes(content)
    with boot("6.1", f"--share={shared},a", f"--share={tmp_path},b,ro") as guest:
        guest.shell("mount -t virtiofs a /a; mount -t virtiofs b /b")

        assert guest.shell("cat /a/file '/b/a directory/file'") == "of the user\nof the user"
        assert guest.shell("md5sum </a/big").split()[0] == digest(shared / "big")
        guest.shell("cp /a/big /a/copy; echo of the guest >/a/other; mkdir /a/sub; sync")
        assert "Read-only file system" in guest.shell("echo x >/b/no")

        guest.type(b"umount /a /b; poweroff -f\n")
        assert guest.end() == 0
    assert (shared / "copy").read_bytes() == content
    assert (shared / "other").read_text() == "of the guest\n"
    assert (shared / "sub").is_dir()
    assert {path.stat().st_uid for path in shared.iterdir()} == {os.getuid()}
    assert not (tmp_path / "no").exists()


@pytest.mark.matrix
@pytest.mark.parametrize("host", ["6.1", "6.12", "7.2"], indirect=True)
@pytest.mark.parametrize("version", list(KERNEL_SUITES))
def test_thousand_files_come_and_go(
    host: list[str], version: str, boot: Boot, shared: Path
) -> None:
    with boot(version, *host, f"--share={shared},a") as guest:
        guest.shell("mount -t virtiofs a /a")
        guest.shell("for n in $(seq 1000); do echo $n >/a/n$n; done", 600)
        names = {f"n{n}" for n in range(1, 1001)}
        assert {path.name for path in shared.iterdir()} == {*names, "file"}
        assert guest.shell("cat /a/n* | md5sum").split()[0] == hashlib.md5(
            b"".join((shared / name).read_bytes() for name in sorted(names))
        ).hexdigest()  # fmt: skip
        guest.shell("rm /a/n*", 600)
        assert [path.name for path in shared.iterdir()] == ["file"]


@pytest.mark.matrix
def test_vm_ends_when_its_virtiofsd_ends(boot: Boot, shared: Path, pyvmm_cmd: list[str]) -> None:
    name = f"share-{os.getpid()}"
    with boot("6.1", f"--share={shared},a", f"--name={name}") as guest:
        guest.shell("mount -t virtiofs a /a")
        saved = subprocess.run([*pyvmm_cmd, "save", name, str(shared / "x.snap")],
                               capture_output=True, text=True)  # fmt: skip
        assert saved.returncode == 2
        assert "a VM with virtio-fs (virtiofsd a) cannot be saved" in saved.stderr
        assert guest.shell("cat /a/file") == "of the user"

        script = (
            "for p in /proc/[0-9]*; do grep -qs shared-dir $p/cmdline && kill -9 ${p#/proc/}; done"
        )
        subprocess.run([*pyvmm_cmd, "host", "exec", "sh", "-c", script], check=False)

        assert guest.end() == 3


def test_directory_that_does_not_exist_is_refused(pyvmm_cmd: list[str], tmp_path: Path) -> None:
    command = [*pyvmm_cmd, "run", f"--share={tmp_path}/none,a", "hello"]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 2
    assert f"--share {tmp_path}/none,a: there is no such directory" in done.stderr
