"""Errors for a /dev/kvm that cannot be opened; imported only then."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

from pyvmm.errors import HostError

GROUP: Final = "kvm"  # the group of Debian's udev rule, 50-udev-default.rules
FOR_GROUP: Final = stat.S_IRGRP | stat.S_IWGRP
EMULATED: Final = "or use an emulated host: `host.kind`=emulated, PYVMM_HOST=emulated for make"

HINTS: Final = {
    errno.EPERM: "the container denies the device: start it with --device /dev/kvm",
    errno.ENODEV: "the kernel has no KVM behind this file: see `dmesg | grep -i kvm`",
    errno.ENXIO: "the kernel has no KVM behind this file: see `dmesg | grep -i kvm`",
    errno.EBUSY: "another hypervisor may use the CPUs: see `dmesg | grep -i kvm`",
}


def refusal(device: Path, error: OSError) -> HostError:
    """Return the error for a device that exists and could not be opened."""
    number = error.errno or errno.EIO
    reason = f"{os.strerror(number)} [{errno.errorcode.get(number, number)}]"
    if number == errno.EACCES:
        user, remedy = _user(), _permission(device)
        return HostError(
            f"{device} cannot be opened by {user}: {reason}", hint=f"{remedy}; {EMULATED}"
        )
    hint = HINTS.get(number, "see `dmesg | grep -i kvm`")
    return HostError(f"{device} cannot be opened: {reason}", hint=f"{hint}; {EMULATED}")


def _permission(device: Path) -> str:
    """Return how this user gets the permission to open the device."""
    try:
        about = _status(device)
    except OSError:  # it is in another user's directory, or was just removed
        return f"see `ls -l {device}`"
    group = _group(about.st_gid)
    if about.st_mode & FOR_GROUP != FOR_GROUP or about.st_gid == 0:
        return f"sudo chgrp {GROUP} {device} && sudo chmod 660 {device}"
    if _user() in _members(group) and about.st_gid not in (os.getegid(), *os.getgroups()):
        return f"you were added to group {group} after your login: log in again"
    return f"sudo usermod -aG {group} {_user()}, then log in again"


def _status(device: Path) -> os.stat_result:
    return device.stat()


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _members(group: str) -> list[str]:
    try:
        return grp.getgrnam(group).gr_mem
    except KeyError:
        return []
