"""Write the guests' layout.h: pyvmm's guest physical map for C and assembler.

Usage: python3 layout_h.py ../pyvmm/layout.py > layout.h

It loads the map by its path, not as pyvmm.layout: the guests are built before pyvmm's dependencies
are installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# The part of the map that guests need: (name in C, value from the layout module, meaning).
DEFINITIONS: tuple[tuple[str, Callable[[Any], int], str], ...] = (
    ("UART_BASE", lambda m: m.UART.base, "16550A, the console"),
    ("UART_SPI", lambda m: m.UART.spi, ""),
    ("VIRTIO_BASE", lambda m: m.virtio(0).base, "the first virtio-mmio device"),
    ("VIRTIO_SPI", lambda m: m.virtio(0).spi, "its interrupt, an edge"),
    ("EXIT_BASE", lambda m: m.EXIT.base, "a 32-bit write of N ends the VM with code N"),
    ("GICD_BASE", lambda m: m.GICD.base, "distributor"),
    ("GICC_BASE", lambda m: m.GICC.base, "a GICv2's CPU interface"),
    ("GICR_SIZE", lambda m: m.GICR_SIZE, "RD_base and SGI_base frames of one vCPU"),
    ("GICR_END", lambda m: m.gicr(1).end, "redistributors end here, in vCPU order"),
    ("PPI_TIMER_VIRT", lambda m: m.PPI_TIMER_VIRT, "virtual timer"),
    ("PPI_TIMER_HYP_VIRT", lambda m: m.PPI_TIMER_HYP_VIRT, "EL2's virtual timer"),
    ("RAM_BASE", lambda m: m.RAM_BASE, ""),
    ("KERNEL_OFFSET", lambda m: m.KERNEL_OFFSET, "where the guests are linked, from RAM_BASE"),
    ("DTB_ALIGN", lambda m: m.DTB_ALIGN, "no device tree lies below this offset into RAM"),
)


def load_layout(path: Path) -> ModuleType:
    """Load the layout module at ``path``, outside its package."""
    spec = importlib.util.spec_from_file_location("layout", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def header(layout: ModuleType) -> str:
    """Return the text of layout.h."""
    lines = ["/* Generated from pyvmm/layout.py by layout_h.py. */", "#pragma once", ""]
    for name, value, meaning in DEFINITIONS:
        comment = f"  /* {meaning} */" if meaning else ""
        lines.append(f"#define {name:<19}{value(layout):#010x}{comment}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(header(load_layout(Path(sys.argv[1]))))
