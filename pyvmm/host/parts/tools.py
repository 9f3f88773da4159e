"""The programs that make an emulated host: those of this machine, or Debian's.

A program that is not on PATH comes from Debian as a *tree*: the package and its libraries,
unpacked in the cache.  It runs with the tree's dynamic loader or library path.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pyvmm.base.files import replacing, write_all
from pyvmm.base.records import Record, made
from pyvmm.errors import EXIT_SIGNAL, HostError
from pyvmm.host.logs import failure
from pyvmm.host.parts import catalogue
from pyvmm.host.parts.debian import Suite, machine_arch
from pyvmm.host.parts.trees import NOT_NEEDED, Offer, recipe
from pyvmm.host.parts.trees import trees_dir as trees_dir
from pyvmm.host.progress import Progress
from pyvmm.host.settings import QEMU, is_path

TOOLS_SUITE: Final = "bookworm"
PYTHON: Final[tuple[int, int]] = (sys.version_info.major, sys.version_info.minor)

SANITIZERS: Final = ("asan8", "atomic1", "gomp1", "hwasan0", "itm1", "lsan0", "stdc++6", "tsan2")
DAEMONS_SUITE: Final = "trixie"  # bookworm has only the virtiofsd of QEMU, which is gone since
# uidmap and what it needs: for users without root who map several ids
DAEMONS_NOT_NEEDED: Final = frozenset({
    "gcc-14-base", "libacl1", "libattr1", "libaudit-common", "libaudit1", "libbsd0", "libbz2-1.0",
    "libcrypt1", "libmd0", "libpam0g", "libpcre2-8-0", "libselinux1", "libsemanage-common",
    "libsemanage2", "libsepol2", "libsubid5", "uidmap",
})  # fmt: skip
CROSS_PREFIX: Final = "aarch64-linux-gnu-"
CROSS_NOT_NEEDED: Final = frozenset(f"lib{name}-arm64-cross" for name in SANITIZERS)

LOADERS: Final = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
TRIPLETS: Final = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


class Tool(Record):
    """A program: the words before its arguments, and additions to the environment."""

    command: tuple[str, ...]
    environment: dict[str, str] = made(dict)
    root: Path | None = None  # the tree that has all files of the program

    @property
    def name(self) -> str:
        """The program's name, without a loader before it."""
        return Path(self.command[3 if "--library-path" in self.command[1:2] else 0]).name

    def run(self, arguments: Sequence[str]) -> str:
        """Run the tool and return its output.

        Raises:
            HostError: it failed; the message has its last lines.
        """
        done = subprocess.run(
            [*self.command, *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise failure(self.name, done.stderr)
        return done.stdout


def tree(
    name: str,
    suite: str,
    packages: Sequence[str],
    progress: Progress,
    *,
    drop: frozenset[str] = NOT_NEEDED,
) -> Path:
    """Return a directory with unpacked packages of a Debian suite and their dependencies."""

    def build(into: Path) -> None:
        source = Suite(suite)
        wanted = [p for p in source.closure(packages) if p.name not in drop]
        source.unpack(wanted, into, progress)

    path = trees_dir() / f"{name}-{suite}-{recipe(packages, drop)}"
    return progress.cached(f"getting {name} from Debian {suite}", path, build)


def _library_path(root: Path, *directories: str, machine: str | None = None) -> str:
    """Return a tree's library directories, for a loader."""
    triplet = TRIPLETS[machine or platform.machine()]
    found = [root / base / triplet for base in directories]
    found += sorted({library.parent for library in found[-1].glob("*/*.so.*")})
    return ":".join(map(str, found))


def through_loader(
    root: Path, program: str, *arguments: str, machine: str | None = None
) -> tuple[str, ...]:
    """Return the command that runs a tree's program with the tree's own C library.

    ``machine`` is the tree's architecture, by default this machine's.
    """
    name = LOADERS[machine or platform.machine()]
    loader = next((p for p in sorted(root.glob(f"**/{name}")) if p.exists()), None)
    if loader is None:
        raise HostError(f"{root} holds no {name}", hint=f"rm -r {root}")
    path = _library_path(root, "lib", "usr/lib", machine=machine)
    return (str(loader), "--library-path", path, str(root / program), *arguments)


def qemu(choice: str, progress: Progress) -> Tool:
    """Return the qemu-system-aarch64 of a version or Debian suite, or the one at a path."""
    if is_path(choice):
        return Tool((str(Path(choice).resolve()),))
    unpack = functools.partial(_unpack_qemu, progress=progress)
    return _qemu_in(catalogue.get(QEMU, choice, unpack, progress).path)


def _unpack_qemu(source: Suite, offer: Offer, into: Path, progress: Progress) -> str:
    """Unpack a QEMU of a suite; return the version that it prints."""
    found = source.closure([f"{offer.name}:{machine_arch()}={offer.package}"])
    wanted = [p for p in found if p.name not in NOT_NEEDED]
    source.unpack(wanted, into, progress)
    return qemu_version(_qemu_in(into))


def _qemu_in(root: Path) -> Tool:
    firmware = ("-L", str(root / "usr/share/qemu"))
    return Tool(
        through_loader(root, "usr/bin/qemu-system-aarch64", *firmware),
        # this machine's module caches belong to its own libraries
        {"GIO_MODULE_DIR": "/nonexistent", "QEMU_MODULE_DIR": str(root / "usr/lib/qemu")},
        root,
    )


def qemu_version(tool: Tool) -> str:
    """Return the version that QEMU prints, for example 7.2.22.

    Raises:
        HostError: the program is not QEMU for aarch64.
    """
    try:
        said = tool.run(["--version"])
    except OSError as error:
        raise HostError(f"{tool.command[-1]}: {error.strerror}") from error
    match = re.search(r"QEMU emulator version (\S+)", said)
    if match is None:
        raise HostError(f"{tool.command[-1]} is not a qemu-system-aarch64")
    return match[1]


def cross(name: str, progress: Progress) -> Tool:
    """Return a program of the aarch64 toolchain, for example aarch64-linux-gnu-gcc.

    A C library and the kernel's headers come with it.
    """
    program = name.removeprefix(CROSS_PREFIX)
    if platform.machine() == "aarch64" and (native := shutil.which(program)):
        return Tool((native,))
    name = f"{CROSS_PREFIX}{program}"
    installed = shutil.which(name)
    if installed and Path("/usr/aarch64-linux-gnu/include/linux/kvm.h").exists():
        return Tool((installed,))
    root = _cross_tree(progress)
    command = [str(root / "usr/bin" / name)]
    if program == "gcc":
        # An unpacked gcc finds its own files, but not the C library's.  The linker scripts have
        # absolute paths, which --sysroot moves into the tree.
        target = root / "usr/aarch64-linux-gnu"
        command += [f"--sysroot={root}", f"-B{target}/lib/", "-isystem", f"{target}/include"]
    # Not through a loader: gcc starts other programs of the tree.
    return Tool(tuple(command), {"LD_LIBRARY_PATH": _library_path(root, "usr/lib")})


def _cross_tree(progress: Progress) -> Path:
    packages = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "linux-libc-dev-arm64-cross"]
    drop = NOT_NEEDED | CROSS_NOT_NEEDED | {"libc6"}  # gcc runs with this machine's C library
    return tree("cross-gcc", TOOLS_SUITE, packages, progress, drop=drop)


def packaged(program: str, package: str, progress: Progress, directory: str = "usr/bin") -> Tool:
    """Return a program: the one on this machine, or that of a Debian package."""
    installed = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if installed:
        return Tool((installed,))
    root = tree(package, TOOLS_SUITE, [package], progress)
    return Tool(through_loader(root, f"{directory}/{program}"))


def virtiofsd(progress: Progress, arch: str = "") -> Tool:
    """Return Debian's virtiofsd, for this machine or for another Debian architecture."""
    wanted = f"virtiofsd:{arch}" if arch else "virtiofsd"
    name = f"virtiofsd-{arch}" if arch else "virtiofsd"
    root = tree(name, DAEMONS_SUITE, [wanted], progress, drop=NOT_NEEDED | DAEMONS_NOT_NEEDED)
    machine = {"": None, "arm64": "aarch64", "amd64": "x86_64"}[arch]
    return Tool(through_loader(root, "usr/libexec/virtiofsd", machine=machine), root=root)


def python311(progress: Progress) -> Tool:
    """Return a Python 3.11 for this machine: .pyc files depend on Python's version."""
    if PYTHON == (3, 11):
        return Tool((sys.executable,))
    root = tree("python3.11", TOOLS_SUITE, ["python3.11"], progress)
    command = through_loader(root, "usr/bin/python3.11")
    return Tool(command, {"PYTHONHOME": str(root / "usr")})


def write_wrapper(tool: Tool, path: Path) -> None:
    """Write a shell script that runs the tool, for make and for tests."""
    words = [f"{name}={shlex.quote(value)}" for name, value in tool.environment.items()]
    command = shlex.join(tool.command)
    script = f'#!/bin/sh\n{" ".join(["exec env", *words])} {command} "$@"\n'
    if path.exists() and path.read_text() == script:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, 0o777) as fd:
        write_all(fd, script.encode())


def main(arguments: Sequence[str], find: Callable[[str, Progress], Tool]) -> int | str:
    """Write wrappers: the arguments are DIRECTORY PROGRAM... Return the argument for sys.exit()."""
    directory, *programs = arguments
    try:
        for name in programs:
            write_wrapper(find(name, Progress()), Path(directory) / name)
    except KeyboardInterrupt:
        return EXIT_SIGNAL + signal.SIGINT
    except HostError as error:
        return f"pyvmm: {error}" + (f"\n  hint: {error.hint}" if error.hint else "")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], cross))
