"""A small Debian arm64 root file system, made without root: systemd, udev, a login.

Packages are unpacked, not configured: this module writes the files of /etc that their scripts make.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cached
from pyvmm.host.parts.debian import Package, Suite
from pyvmm.host.parts.tools import TOOLS_SUITE, trees_dir
from pyvmm.host.progress import Progress
from tests.conftest import tool

# Programs for arm64; apt adds their libraries.
PROGRAMS: Final = (
    "base-files", "bash", "coreutils", "dash", "e2fsprogs", "findutils", "grep", "libc-bin",
    "libpam-modules", "libpam-modules-bin", "login", "mount", "passwd", "procps", "sed", "systemd",
    "systemd-sysv", "udev", "util-linux",
)  # fmt: skip
# Packages for all architectures
DATA: Final = ("base-passwd", "libpam-runtime", "ncurses-base")

ETC: Final = {
    "fstab": "/dev/vda / ext4 defaults 0 1\n",
    "hostname": "debian-on-pyvmm\n",
    "machine-id": "0123456789abcdef0123456789abcdef\n",  # else its first boot asks questions
    "shadow": "root::19000:0:99999:7:::\n",  # no password
    "pam.d/common-auth": "auth required pam_unix.so nullok\n",
    "pam.d/common-account": "account required pam_unix.so\n",
    "pam.d/common-password": "password required pam_unix.so\n",
    "pam.d/common-session": "session required pam_unix.so\n",
    "pam.d/common-session-noninteractive": "session required pam_unix.so\n",
}


def write_image(path: Path, size: int) -> None:
    """Write an ext4 of the file system to a new file."""
    tree = _tree()
    with path.open("wb") as file:
        file.truncate(size)
    command = [str(tool("mke2fs")), "-q", "-t", "ext4", "-d", str(tree), str(path)]
    if os.geteuid():  # the guest's root owns the files
        command = ["unshare", "--map-root-user", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _tree() -> Path:
    def build(into: Path) -> None:
        suite = Suite(TOOLS_SUITE)
        found = suite.closure([*(f"{name}:arm64" for name in PROGRAMS), *DATA])
        suite.unpack([p for p in found if _wanted(p)], into, Progress())
        _merge_usr(into)
        for useless in ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info"):
            shutil.rmtree(into / useless, ignore_errors=True)
        _write_etc(into)

    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    return cached(trees_dir() / f"debian-root-{TOOLS_SUITE}-{recipe}", build)


def _wanted(package: Package) -> bool:
    """Return whether a package is for arm64 or for all; apt also adds this machine's."""
    return package.arch == "arm64" or package.name in DATA


def _merge_usr(root: Path) -> None:
    for name in ("bin", "sbin", "lib"):
        old, merged = root / name, root / "usr" / name
        merged.mkdir(parents=True, exist_ok=True)
        if old.is_dir() and not old.is_symlink():
            shutil.copytree(old, merged, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(old)
        if not old.is_symlink():
            old.symlink_to(f"usr/{name}")


def _write_etc(root: Path) -> None:
    masters = root / "usr/share/base-passwd"
    for name in ("passwd", "group"):  # x: the password is in shadow
        master = (masters / f"{name}.master").read_text()
        (root / "etc" / name).write_text(master.replace(":*:", ":x:"))
    for name, content in ETC.items():
        path = root / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "etc/shadow").chmod(0o600)
    for name in ("dev", "proc", "sys", "run", "tmp", "root"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.copyfile(root / "usr/share/base-files/profile", root / "etc/profile")
