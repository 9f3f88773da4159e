"""Inside the emulated host: the user's files at their own paths, the time, and fresh randomness.

The user's file tree comes through QEMU's 9p at /run/pyvmm/user; every real directory at its top
is then bound at its own path, but for those that make up the emulated host itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import Final

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


def mount_user_files() -> None:
    """Mount the user's file tree and bind its directories at their own paths."""
    USER_ROOT.mkdir(parents=True, exist_ok=True)
    _mount(MOUNT_TAG, USER_ROOT, "9p", 0, OPTIONS)
    for source in USER_ROOT.iterdir():
        if source.name not in OWN and source.is_dir() and not source.is_symlink():
            _bind(source, Path("/") / source.name)
    for name in SHARED_USR:
        if (USER_ROOT / "usr" / name).is_dir():
            _bind(USER_ROOT / "usr" / name, Path("/usr") / name)


def _bind(source: Path, target: Path) -> None:
    if not target.exists():
        target.mkdir()
    _mount(str(source), target, None, MS_BIND, None)


def _mount(source: str, target: Path, kind: str | None, flags: int, data: str | None) -> None:
    """mount(2), which Python has not."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if w is None else w.encode() for w in (source, str(target), kind)]
    if libc.mount(*words, flags, None if data is None else data.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def set_clock(now_ns: int) -> None:
    """Set the real-time clock, which a restored host resumes at the time of the save."""
    time.clock_settime_ns(time.CLOCK_REALTIME, now_ns)


def reseed(entropy: bytes) -> None:
    """Stir fresh bytes into the kernel's random pool: restored hosts would else all be alike."""
    with Path("/dev/urandom").open("wb", buffering=0) as pool:
        request = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
        fcntl.ioctl(pool, RNDADDENTROPY, request)
        fcntl.ioctl(pool, RNDRESEEDCRNG)
