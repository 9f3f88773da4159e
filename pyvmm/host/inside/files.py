"""The user's files at their own paths in the emulated host, and fresh randomness.

QEMU's 9p device has the user's file tree, which is mounted at /run/pyvmm/user.  Each directory at
the top of that tree is then bound at its own path, unless the emulated host has its own there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from pyvmm.host.share import OWN, SHARED_USR

MOUNT_TAG: Final = "user"
USER_ROOT: Final = Path("/run/pyvmm/user")
OPTIONS: Final = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=client"

MS_BIND: Final = 4096  # Source: uapi/linux/mount.h
RNDADDENTROPY: Final = 0x4008_5203  # Source: uapi/linux/random.h
RNDRESEEDCRNG: Final = 0x5207


def mount_user_files() -> None:
    """Mount the user's file tree, and bind the shared directories of its /usr."""
    USER_ROOT.mkdir(parents=True, exist_ok=True)
    _mount(MOUNT_TAG, USER_ROOT, "9p", 0, OPTIONS)
    for name in SHARED_USR:
        if (USER_ROOT / "usr" / name).is_dir():
            _mount(str(USER_ROOT / "usr" / name), Path("/usr") / name, None, MS_BIND, None)


def show_top_level(root: Path = Path("/")) -> None:
    """Give new entries at the top of the user's file tree their own paths, by mounts and links."""
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
    """Call mount(2), which Python lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    texts = [None if t is None else t.encode() for t in (source, str(target), kind)]
    if libc.mount(*texts, flags, None if data is None else data.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def reseed(entropy: bytes) -> None:
    """Add fresh bytes to the kernel's random pool, which is the same in all restored hosts."""
    with Path("/dev/urandom").open("wb", buffering=0) as pool:
        request = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
        fcntl.ioctl(pool, RNDADDENTROPY, request)
        fcntl.ioctl(pool, RNDRESEEDCRNG)
