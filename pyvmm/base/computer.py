"""The machine this process runs on, in words; it may be one that pyvmm emulates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

INSIDE_VARIABLE: Final = "PYVMM_INSIDE"  # set inside an emulated host: its description
DEVICE_TREE: Final = Path("/sys/firmware/devicetree/base")
BOARD: Final = Path("/sys/class/dmi/id/product_name")


def describe_inside() -> str | None:
    """The emulated host this process runs in, or None on a machine of its own."""
    return os.environ.get(INSIDE_VARIABLE)


def kind_of_machine() -> str:
    """Whether this is hardware, as far as it can be told; empty where it cannot."""
    if inside := describe_inside():
        return f"emulated: {inside}"
    compatible = small_text(DEVICE_TREE / "compatible")
    if "linux,dummy-virt" in compatible:
        return "a virtual machine"
    return small_text(DEVICE_TREE / "model") or small_text(BOARD)


def small_text(path: Path) -> str:
    """A small file's text without the NULs of a device tree; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""
