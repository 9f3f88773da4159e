"""Inside the emulated host: the user's files at their own paths, and fresh randomness.

The user's file tree comes through QEMU's 9p at /run/pyvmm/user; every real directory at its top
is then bound at its own path, but for those that make up the emulated host itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyvmm.errors import HostError

MOUNT_TAG: Final = "user"
USER_ROOT: Final = Path("/run/pyvmm/user")
# What the emulated host has of its own; of the user's /usr these three are shared.
OWN: Final = frozenset({
    "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "proc", "sys", "dev", "run",
})  # fmt: skip
SHARED_USR: Final = ("src", "local", "share")
OPTIONS: Final = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=client"

MS_BIND: Final = 4096  # Source: uapi/linux/mount.h
RNDADDENTROPY: Final = 0x4008_5203  # Source: uapi/linux/random.h
RNDRESEEDCRNG: Final = 0x5207


def hidden(path: Path) -> bool:
    """Whether an absolute path lies where the emulated host has its own files instead."""
    parts = path.parts[1:]
    if not parts or parts[0] not in OWN:
        return False
    return not (parts[0] == "usr" and len(parts) > 1 and parts[1] in SHARED_USR)


def refuse_hidden(files: Iterable[Path]) -> None:
    """Make sure that a command in the emulated host sees those files, and where it is started.

    Raises:
        HostError: it has its own files there.
    """
    try:
        cwd = Path.cwd()
    except FileNotFoundError as error:
        raise HostError("the current directory does not exist any more") from error
    if hidden(cwd):
        raise _unseen(cwd, "run pyvmm from another directory")
    for file in files:
        real = Path(os.path.realpath(file))
        if hidden(real) and not _is_special(real):
            raise _unseen(real, "use a copy in another directory")


def _is_special(path: Path) -> bool:
    """Whether that is something like /dev/null, which the emulated host has as well."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _unseen(path: Path, hint: str) -> HostError:
    return HostError(
        f"the emulated host has its own {Path(*path.parts[:2])}: it does not see {path}", hint=hint
    )


def mount_user_files() -> None:
    """Mount the user's file tree and bind three of its directories of /usr."""
    USER_ROOT.mkdir(parents=True, exist_ok=True)
    _mount(MOUNT_TAG, USER_ROOT, "9p", 0, OPTIONS)
    for name in SHARED_USR:
        if (USER_ROOT / "usr" / name).is_dir():
            _mount(str(USER_ROOT / "usr" / name), Path("/usr") / name, None, MS_BIND, None)


def show_top_level(root: Path = Path("/")) -> None:
    """Have what is at the top of the user's file tree at its own path; again, for what is new."""
    for source in USER_ROOT.iterdir():
        target = root / source.name
        if source.name in OWN or os.path.lexists(target):
            continue
        if source.is_dir() and not source.is_symlink():
            target.mkdir()
            _mount(str(source), target, None, MS_BIND, None)
        else:
            target.symlink_to(source)


def _mount(source: str, target: Path, kind: str | None, flags: int, data: str | None) -> None:
    """mount(2), which Python has not."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if w is None else w.encode() for w in (source, str(target), kind)]
    if libc.mount(*words, flags, None if data is None else data.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def reseed(entropy: bytes) -> None:
    """Stir fresh bytes into the kernel's random pool: restored hosts would else all be alike."""
    with Path("/dev/urandom").open("wb", buffering=0) as pool:
        request = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
        fcntl.ioctl(pool, RNDADDENTROPY, request)
        fcntl.ioctl(pool, RNDRESEEDCRNG)
