"""The user's files at their own paths in the emulated host, and fresh randomness.

QEMU's 9p device has the user's file tree, which is mounted at /run/pyvmm/user.  Each directory at
the top of that tree is then bound at its own path, unless the emulated host has its own there.

A confined QEMU has a directory of trees instead, one for each command that runs.  Each command then
has a mount namespace of its own, with the directories of its tree.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from pyvmm.host.share import NO_TREE, OWN, SHARED_USR

MOUNT_TAG: Final = "user"
USER_ROOT: Final = Path("/run/pyvmm/user")
OPTIONS: Final = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=client"

CLONE_NEWNS: Final = 0x0002_0000  # Source: uapi/linux/sched.h
MS_RDONLY: Final = 1  # Source: uapi/linux/mount.h
MS_BIND: Final = 4096
RNDADDENTROPY: Final = 0x4008_5203  # Source: uapi/linux/random.h
RNDRESEEDCRNG: Final = 0x5207


def mount_user_files(*, whole: bool) -> None:
    """Mount the shared files; if they are the whole tree, bind the directories of the user's /usr.

    Raises: OSError.
    """
    USER_ROOT.mkdir(parents=True, exist_ok=True)
    _mount(MOUNT_TAG, USER_ROOT, "9p", 0, OPTIONS)
    if whole:
        _show_usr(USER_ROOT)


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


def show_tree(name: str, root: Path = Path("/")) -> None:
    """Give this process mounts of its own: a tree of the user's files at their own paths.

    After that it cannot reach the trees of other commands.  Raises: OSError.
    """
    _unshare_mounts()
    tree = USER_ROOT / name
    if name != NO_TREE:
        # Through 9p every look at a file is slow: the listing has the types.
        entries = _listed(tree)
        for entry in entries:
            if entry.name not in OWN:
                _show(entry, root / entry.name)
        has_usr = "usr" in (entry.name for entry in entries)
        for entry in _listed(tree / "usr") if has_usr else ():
            if entry.name in SHARED_USR:
                _mount(entry.path, Path("/usr") / entry.name, None, MS_BIND, None)
    _mount("none", USER_ROOT, "tmpfs", MS_RDONLY, "mode=755")


def _unshare_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")


def _listed(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return list(entries)


def _show(source: os.DirEntry[str], target: Path) -> None:
    """Give an entry at the top of a tree its own path.

    Only this process sees the mount. All processes see the directory below it.
    """
    if source.is_symlink():
        if not os.path.lexists(target):
            target.symlink_to(Path(source.path).readlink())
        return
    if source.is_dir(follow_symlinks=False):
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount(source.path, target, None, MS_BIND, None)


def _show_usr(tree: Path) -> None:
    for name in SHARED_USR:
        if (tree / "usr" / name).is_dir():
            _mount(str(tree / "usr" / name), Path("/usr") / name, None, MS_BIND, None)


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
