"""A description of the machine this process runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

INSIDE_VARIABLE: Final = "PYVMM_INSIDE"  # the description of an emulated host, set inside it
TREE_VARIABLE: Final = "PYVMM_TREE"  # inside: the name of the files that the command sees
DEVICE_TREE: Final = Path("/sys/firmware/devicetree/base")
MOUNTINFO: Final = Path("/proc/self/mountinfo")
BOARD: Final = Path("/sys/class/dmi/id/product_name")


def describe_inside() -> str | None:
    """Return the description of the emulated host this process runs in, or None outside one."""
    return os.environ.get(INSIDE_VARIABLE)


def kind_of_machine() -> str:
    """Return the machine's model, or "emulated: ..." or "a virtual machine"; empty if unknown."""
    if inside := describe_inside():
        return f"emulated: {inside}"
    compatible = small_text(DEVICE_TREE / "compatible")
    if "linux,dummy-virt" in compatible:
        return "a virtual machine"
    return small_text(DEVICE_TREE / "model") or small_text(BOARD)


def small_text(path: Path) -> str:
    """Return a small file's text, without a device tree's NULs; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


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
