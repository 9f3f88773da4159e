"""The arm64 machine's disk: Debian packages, installed by the machine itself at its first boot.

This needs no root, no binfmt and no arm64 processor: the packages that dpkg needs are unpacked
here, and the machine runs dpkg. The finished disk stays in the cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cached
from pyvmm.errors import HostError
from pyvmm.host.parts import kernel, root
from pyvmm.host.parts.cpio import CpioWriter
from pyvmm.host.parts.debian import Suite
from pyvmm.host.parts.tools import TOOLS_SUITE, packaged, trees_dir
from pyvmm.host.progress import Progress
from scripts.native.machine import Boot, Machine

KERNEL_PACKAGE: Final = "linux-image-arm64:arm64"
HERE: Final = Path(__file__).parent
ARCH: Final = "arm64"
ESSENTIAL: Final = "?and(?essential,?architecture(arm64))"
# The packages that docs/installing.md asks for, and those of a bootable system.
WANTED: Final = ("python3", "make", "git", "apt", "gcc", "libc6-dev", "python3-dev", "python3-venv")
SYSTEM: Final = (
    "ca-certificates", "dbus", "debian-archive-keyring", "e2fsprogs", "iproute2", "kmod",
    "libpam-systemd", "netbase", "passwd", "procps", "systemd-sysv", "udev", "util-linux",
)  # fmt: skip
MODULES: Final = (
    "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "ext4", "9p", "9pnet_virtio",
)  # fmt: skip
SIZE: Final = 12 << 30  # a sparse file
INSTALL_S: Final = 3600.0

# Addresses are QEMU's user-mode network (qemu(1), -netdev user).
FILES: Final = {
    "etc/hostname": "arm64\n",
    "etc/hosts": "127.0.0.1 localhost arm64\n",
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/systemd/network/10-qemu.network": (
        "[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nIPv6AcceptRA=no\n"
    ),
    "etc/systemd/system/native-agent.service": (
        "[Unit]\nAfter=systemd-networkd.service systemd-user-sessions.service dbus.service\n"
        "[Service]\nExecStart=/usr/bin/python3 /usr/local/sbin/native-agent\n"
        "Restart=on-failure\nRestartSec=1\n"
        "[Install]\nWantedBy=multi-user.target\n"
    ),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """The files that the machine boots from; no run changes the disk, which is in the cache."""

    image: Path
    initrd: Path
    disk: Path


def parts(progress: Progress) -> Parts:
    """Return the machine's kernel, initramfs and disk; make them if the cache lacks them.

    Raises:
        HostError: a download failed, or the installation did.
    """
    made_of = [repr((ESSENTIAL, WANTED, SYSTEM, MODULES, SIZE, FILES)).encode()]
    made_of += [(HERE / name).read_bytes() for name in ("agent.py", "init.sh", "install.sh")]
    recipe = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:8]
    path = trees_dir() / f"native-machine-{TOOLS_SUITE}-{recipe}"
    found = kernel.find(str(_kernel(progress)), progress)

    def build(into: Path) -> None:
        _write_initrd(into / "initrd", found, progress)
        _write_disk(into / "disk", progress)
        _install(Parts(found.image, into / "initrd", into / "disk"), progress)

    if not path.is_dir():
        with progress.step("installing Debian on an emulated arm64 machine (minutes)"):
            cached(path, build)
    return Parts(found.image, path / "initrd", path / "disk")


def _kernel(progress: Progress) -> Path:
    """Get Debian's kernel with all its drivers: the emulated host's has no network."""

    def build(into: Path) -> None:
        source = Suite(TOOLS_SUITE, ARCH)
        found = source.closure([KERNEL_PACKAGE])
        source.unpack([p for p in found if kernel.PARTS.match(p.name)], into, progress)

    path = trees_dir() / f"native-kernel-{TOOLS_SUITE}"
    if path.is_dir():
        return path
    with progress.step("getting the arm64 machine's kernel"):
        return cached(path, build)


def _write_initrd(path: Path, found: kernel.Kernel, progress: Progress) -> None:
    modules = found.modules(MODULES)
    with path.open("wb") as file:
        archive = CpioWriter(file)
        archive.device("dev/console", 5, 1)
        archive.file("init", (HERE / "init.sh").read_bytes(), 0o755)
        archive.file("busybox", root.busybox(progress).read_bytes(), 0o755)
        archive.file("modules/order", "".join(f"{name}\n" for name in modules).encode())
        for name, content in modules.items():
            archive.file(f"modules/{name}.ko", content)
        archive.close()


def _write_disk(path: Path, progress: Progress) -> None:
    """Write an ext4 that holds every package, with those unpacked that dpkg needs."""
    tree = path.with_name("tree")
    _lay_out(tree)
    source = Suite(TOOLS_SUITE, ARCH)
    essential = source.closure([ESSENTIAL])
    names = {package.name for package in essential}
    every = source.closure([ESSENTIAL, *WANTED, *SYSTEM])
    packages = tree / "var/cache/native"
    others = [p for p in every if p.name not in names]
    source.download(others, packages, progress)
    for deb in source.download(essential, packages / "essential", progress):
        _extract(deb, tree)
    _prepare_dpkg(tree)
    with path.open("wb") as file:
        file.truncate(SIZE)
    command = [
        *packaged("mke2fs", "e2fsprogs", progress, "sbin").command,
        "-q",
        "-t",
        "ext4",
        "-d",
        str(tree),
        str(path),
    ]
    if os.geteuid():  # the machine's root owns the files
        command = ["unshare", "--map-root-user", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"mke2fs: {done.stderr.strip()}")
    shutil.rmtree(tree)


def _lay_out(tree: Path) -> None:
    """Make the directories that packages expect: /bin, /sbin and /lib are links into /usr."""
    for name in ("bin", "sbin", "lib"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "sys", "run", "tmp", "root"):
        (tree / name).mkdir()
    (tree / "tmp").chmod(0o1777)


def _extract(deb: Path, tree: Path) -> None:
    """Unpack a package; dpkg-deb's own -x would replace the links into /usr by directories."""
    content = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, check=True
    )
    unpack = ["tar", "-xp", "--keep-directory-symlink", "-C", str(tree)]
    subprocess.run(unpack, input=content.stdout, check=True)


def _prepare_dpkg(tree: Path) -> None:
    """Write the files that scripts of packages need before any package is configured."""
    for name in ("passwd", "group"):
        shutil.copyfile(tree / f"usr/share/base-passwd/{name}.master", tree / "etc" / name)
    (tree / "var/lib/dpkg/status").touch()
    (tree / "usr/bin/awk").symlink_to("mawk")
    for name, content in FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name, source, mode in (
        ("install.sh", "install.sh", 0o755),
        ("usr/local/sbin/native-agent", "agent.py", 0o644),
    ):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / source, path)
        path.chmod(mode)


def _install(made: Parts, progress: Progress) -> None:
    """Boot the disk once, to install its packages; it switches itself off."""
    boot = Boot(made.image, made.initrd, made.disk, init="/install.sh", share=None)
    with Machine.started(boot, progress) as machine:
        said = machine.wait_for_end(INSTALL_S)
    verdict = [line for line in said.splitlines() if line.startswith("native-install: ")]
    if not verdict or "done" not in verdict[-1]:
        raise HostError(f"the arm64 machine was not installed:\n{said[-4000:]}")
