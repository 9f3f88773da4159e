"""The mounted file systems, as the kernel lists them."""

from __future__ import annotations

import os
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")


def file_system(device: int) -> str:
    """Return the type of the mounted file system on a device (``st_dev``); empty if none is.

    Source: proc_pid_mountinfo(5).  The type is the first word after " - ".
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in MOUNTINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number:
            return rest.split()[0]
    return ""
