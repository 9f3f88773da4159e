"""The files that a running VM may still open, as Landlock rules: a table by option.

What a machine has open stays usable: its disks, image, snapshot and trace need no rule.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvmm.config import Config
from pyvmm.sandbox.landlock import DEVICE, MAKE, READ, READ_WRITE, Rule

PACKAGE: Final = Path(__file__).parents[1]
KVM: Final = Path("/dev/kvm")
# Modules and libraries that are loaded on use, and what a snapshot says about the machine.
ALWAYS: Final = (
    *(Rule(Path(path), READ) for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64",
                                          "/etc/ld.so.cache", "/proc/self",
                                          "/sys/devices/system/cpu",
                                          "/sys/firmware/devicetree/base",
                                          "/sys/class/dmi/id/product_name")),
)  # fmt: skip
# To make the machine again
REBOOT: Final = tuple(
    Rule(Path(path), READ)
    for path in ("/proc/meminfo", "/proc/sys/vm/overcommit_memory", "/sys/kernel/mm/hugepages")
)  # fmt: skip


def always() -> Iterator[Rule]:
    """Yield the rules that every VM needs: read Python's modules and libraries, and /proc/self."""
    yield from ALWAYS
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    for path in dict.fromkeys((PACKAGE, Path(os.__file__).parent, *map(Path, packages))):
        yield Rule(path, READ)


def of_reboot(config: Config) -> Iterator[Rule]:
    """Yield the rules for making the machine of a Config again."""
    yield from REBOOT
    yield Rule(KVM, DEVICE)
    yield from (Rule(path, READ) for path in (config.image, config.initrd) if path is not None)
    for device in config.devices:
        access = READ if getattr(device, "read_only", False) else READ_WRITE
        yield from (Rule(path, access) for path in device.files())
        yield from (Rule(path, DEVICE) for path in device.nodes)
    if config.hugetlbfs is not None:
        yield Rule(config.hugetlbfs, MAKE)
