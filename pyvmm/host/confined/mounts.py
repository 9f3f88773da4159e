"""Linux's calls for namespaces, mounts and capabilities, which Python lacks."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

# Source: uapi/linux/sched.h
NEWNS: Final = 0x0002_0000
NEWUSER: Final = 0x1000_0000
NEWNET: Final = 0x4000_0000

# Source: uapi/linux/mount.h
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_BIND: Final = 1 << 12
MS_REC: Final = 1 << 14
MS_UNBINDABLE: Final = 1 << 17
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2  # Source: linux/fs.h
ATTR_RDONLY: Final = 1
ATTR_NOSUID: Final = 2
ATTR_NODEV: Final = 4
MOUNT_SETATTR: Final = 442  # the same on every architecture; Linux 5.12
AT_FDCWD: Final = -100
AT_RECURSIVE: Final = 0x8000

# Source: uapi/linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_CAPBSET_DROP: Final = 24
PR_CAPBSET_READ: Final = 23
# Source: uapi/linux/capability.h
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID = 0, 1, 3, 4
LAST_CAPABILITY: Final = 63

_libc = ctypes.CDLL(None, use_errno=True)


def isolate(*, network: bool) -> None:
    """Give this process, which has one thread, its own mounts; without ``network``, no network.

    A process that is not root also gets its own user namespace, in which it may mount.

    Raises: OSError.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = NEWNS | (0 if network else NEWNET) | (NEWUSER if uid else 0)
    _check(_libc.unshare(flags), "unshare")
    if uid:
        # Source: user_namespaces(7); this order is required.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"),
                           ("gid_map", f"{gid} {gid} 1")):  # fmt: skip
            Path("/proc/self", name).write_text(text)
    # New mounts outside appear here, but none of these appears there.
    mount("none", Path("/"), None, MS_SLAVE | MS_REC)


def mount(
    source: str | Path, target: Path, kind: str | None, flags: int, data: str | None = None
) -> None:
    """Call mount(2).  Raises: OSError."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    options = None if data is None else data.encode()
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), options), f"mount {source} on {target}")


def bind(source: Path, target: Path, *, writable: bool, devices: bool = False) -> None:
    """Show a file, or a directory with all that is mounted in it, at a second place too.

    Raises: OSError.
    """
    mount(source, target, None, MS_BIND | MS_REC)
    denied = ATTR_NOSUID | (0 if devices else ATTR_NODEV) | (0 if writable else ATTR_RDONLY)
    try:
        _set_attributes(target, AT_RECURSIVE, add=denied)
    except OSError:
        unmount(target)
        raise


def set_writable(target: Path, writable: bool) -> None:
    """Change whether one mount is writable, without those below it.  Raises: OSError."""
    _set_attributes(target, 0, **{"remove" if writable else "add": ATTR_RDONLY})


def _set_attributes(target: Path, flags: int, add: int = 0, remove: int = 0) -> None:
    attributes = struct.pack("4Q", add, remove, 0, 0)  # the last: propagation, a user namespace
    size = ctypes.c_size_t(len(attributes))
    path = os.fsencode(target)
    result = _libc.syscall(MOUNT_SETATTR, AT_FDCWD, path, flags, attributes, size)
    _check(result, f"mount_setattr {target}")


def unmount(target: Path) -> None:
    """Remove a mount and those below it; files that are open stay usable.  Raises: OSError."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def keep_capabilities(*kept: int) -> None:
    """Leave this process no other capabilities after its next execve(2).

    Raises: OSError.
    """
    if os.geteuid():
        return  # users other than root have none then
    for number in range(LAST_CAPABILITY + 1):
        if number not in kept and _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _check(_libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")


def end_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends.  Raises: OSError."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
