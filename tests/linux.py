"""Debian's arm64 kernels with a small initramfs: a guest that ends in a busybox shell.

The shell reads the console, where a test types.
"""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from pyvmm.base.dirs import cached
from pyvmm.host.parts import kernel, root, tools
from pyvmm.host.parts.cpio import CpioWriter
from pyvmm.host.parts.debian import Suite
from pyvmm.host.progress import Progress

# The virtio console is a module of Debian's kernels.  Before it is loaded, nothing has it open, and
# /dev/console does not exist.  The shell controls its terminal, so that ^C and a new size reach it.
# The kernel is silent by then: on a busy machine its messages would be in the shell's output.
INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
[ ! -d /modules ] || for module in /modules/*; do insmod $module; done
read -r tty </sys/class/tty/console/active
exec <"/dev/${tty##* }" >"/dev/${tty##* }" 2>&1
echo "init: $(uname -r) on $(nproc) CPUs"
dmesg -n 1
exec setsid -c sh
"""

# The usual initramfs: it loads drivers and switches to the file system that root= names.
SWITCH_ROOT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mkdir /root
root=$(sed 's/.*root=//; s/ .*//' /proc/cmdline)
mount -t ext4 $root /root
umount /proc
exec switch_root /root /sbin/init
"""


def image(version: str) -> Path:
    """Return the kernel of a Debian suite: 5.10, 6.1, 6.12 or 7.2."""
    return kernel.find(version, Progress()).image


def virtio_modules(version: str) -> dict[str, bytes]:
    """Return files for the initramfs: the console's modules, named in their load order."""
    return modules(version, "virtio_mmio", "virtio_blk", "virtio_console")


def e2fsprogs() -> dict[str, bytes]:
    """Return files for the initramfs: mke2fs and e2fsck with their libraries."""
    tree = tools.tree("e2fsprogs-arm64", tools.TOOLS_SUITE, ["e2fsprogs:arm64"], Progress())
    return {path: (tree / path).read_bytes() for path in E2FSPROGS}


def rngtest() -> dict[str, bytes]:
    """Return files for the initramfs: the FIPS 140-2 tests; libc comes from e2fsprogs()."""
    tree = packages("rng-tools-debian-arm64", tools.TOOLS_SUITE, "rng-tools-debian:arm64")
    return {"bin/rngtest": (tree / "usr/bin/rngtest").read_bytes()}


def packages(name: str, suite: str, *specs: str, match: str = "") -> Path:
    """Return a tree of Debian packages without their dependencies.

    With ``match``, a beginning of names, it has all dependencies of such a name too.
    """
    names = {spec.partition(":")[0] for spec in specs}

    def build(into: Path) -> None:
        source = Suite(suite)
        found = source.closure(specs)
        wanted = [p for p in found if p.name in names or (match and p.name.startswith(match))]
        source.unpack(wanted, into, Progress())

    return cached(tools.trees_dir() / f"{name}-{suite}", build)


def flavour(package: str, suite: str) -> Path:
    """Return the Image of a Debian kernel for other uses, such as linux-image-rt-arm64."""
    tree = packages(package, suite, f"{package}:arm64", match="linux-image-")
    (found,) = tree.glob("boot/vmlinuz-*")
    return found


def debug_files(package: str, suite: str) -> Path:
    """Return a directory with the vmlinux and the System.map of a flavour().

    The rest of its -dbg package, a GiB of modules, is not unpacked.
    """

    def build(into: Path) -> None:
        source = Suite(suite)
        wanted = f"{package}-dbg"
        found = [p for p in source.closure([f"{wanted}:arm64"]) if p.name.startswith("linux-image")]
        for deb in source.download(found, into / ".debs", Progress()):
            command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as files:
                take = ["tar", "-x", "-C", str(into), "--wildcards", "./usr/lib/debug/boot/*"]
                subprocess.run(take, stdin=files.stdout, stderr=subprocess.DEVNULL)
            deb.unlink()

    tree = cached(tools.trees_dir() / f"{package}-dbg-{suite}", build)
    return tree / "usr/lib/debug/boot"


def ukify(out: Path, kernel: Path, initrd: Path, cmdline: str) -> Path:
    """Make a unified kernel image by Debian's ukify, with the stub of systemd."""
    specs = ("systemd-ukify", "python3-pefile", "systemd-boot-efi:arm64")
    tree = packages("ukify", "trixie", *specs)
    os_release = out.with_suffix(".os-release")
    os_release.write_text('ID=debian\nPRETTY_NAME="Debian of a test"\n')
    command: list[str | Path] = [
        sys.executable, tree / "usr/bin/ukify", "build", f"--linux={kernel}", f"--initrd={initrd}",
        f"--cmdline={cmdline}", f"--os-release=@{os_release}", f"--output={out}", "--efi-arch=aa64",
        f"--stub={tree}/usr/lib/systemd/boot/efi/linuxaa64.efi.stub",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{tree}/usr/lib/python3/dist-packages"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def modules(version: str, *names: str) -> dict[str, bytes]:
    """Return files for the initramfs: modules and their dependencies, in load order."""
    found = kernel.find(version, Progress()).modules(names)
    return {f"modules/{n:02}-{name}.ko": data for n, (name, data) in enumerate(found.items())}


def initramfs(files: dict[str, bytes] | None = None, init: bytes = INIT) -> bytes:
    """Return an initramfs of busybox and of more executable files, by their paths."""
    archive = io.BytesIO()
    writer = CpioWriter(archive)
    for directory in ("dev", "proc", "sys"):
        writer.directory(directory)
    writer.device("dev/console", 5, 1)
    writer.file("bin/busybox", root.busybox(Progress()).read_bytes(), 0o755)
    writer.file("init", init, 0o755)
    for path, content in (files or {}).items():
        writer.file(path, content, 0o755)
    writer.close()
    return archive.getvalue()


PROMPT = b"/ # "

LIB = "lib/aarch64-linux-gnu"
E2FSPROGS = (
    "sbin/mke2fs", "sbin/e2fsck", "etc/mke2fs.conf", "lib/ld-linux-aarch64.so.1",
    f"{LIB}/libc.so.6", f"{LIB}/libext2fs.so.2", f"{LIB}/libcom_err.so.2", f"{LIB}/libe2p.so.2",
    f"usr/{LIB}/libblkid.so.1", f"usr/{LIB}/libuuid.so.1",
)  # fmt: skip


class Session:
    """A guest in a process of its own; a test types, and waits for output."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.output, self.errors = b"", b""  # the errors are there after end()
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process: subprocess.Popen[bytes] = subprocess.Popen(command, **{**streams, **options})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_for(self, text: bytes, timeout_s: float = 300.0) -> bytes:
        """Read until ``text`` comes, and return the output up to it."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while (found := self.output.find(text)) < 0:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, left))
            data = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            assert data, (text, self.output[-2000:], self._words())
            self.output += data
        end = found + len(text)
        self.output, taken = self.output[end:], self.output[:end]
        return taken

    def type(self, text: bytes) -> None:
        """Type a text."""
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def shell(self, command: str, timeout_s: float = 300.0) -> str:
        """Run a command at the shell's prompt, and return its output."""
        self.type(command.encode() + b"\n")
        printed = self.wait_for(PROMPT, timeout_s).decode().replace("\r", "")
        return printed.removesuffix(PROMPT.decode()).partition("\n")[2].strip()

    def end(self, timeout_s: float = 60.0) -> int:
        """Wait for the end and return the exit code."""
        out, self.errors = self._process.communicate(timeout=timeout_s)
        self.output += out
        return self._process.returncode

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._process.kill()
        self._process.wait()

    def _words(self) -> bytes:
        """End pyvmm, and return its messages."""
        self._process.kill()
        return self._process.communicate()[1]
