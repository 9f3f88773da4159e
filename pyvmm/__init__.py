"""A lightweight virtual machine monitor for KVM on arm64, with exact SVE vector lengths.

    from pathlib import Path
    from pyvmm import Config, Machine, SveRequest

    config = Config(image=Path("guest.elf"), vcpus=2, sve=SveRequest(vls=frozenset({128, 256})))
    with Machine(config) as vm:
        code = vm.run()

The names below import their modules on first use: importing pyvmm is fast and works on any machine.
Only a Machine needs an arm64 /dev/kvm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.arm64.lanes import Predicate, Vector
    from pyvmm.config import Config, Disk, Pmem, Rng, SveRequest
    from pyvmm.errors import (
        GuestError,
        HostError,
        ImageError,
        KvmError,
        TimeoutExpired,
        UsageError,
        VmmError,
    )
    from pyvmm.machine.machine import Machine
    from pyvmm.sandbox.confine import confine
    from pyvmm.snapshot.restorer import restore
    from pyvmm.snapshot.save import save
    from pyvmm.snapshot.snapshot import Snapshot
    from pyvmm.svecheck.probe import Probe

__version__ = "0.1.0"

__all__ = (
    "Config",
    "Disk",
    "GuestError",
    "HostError",
    "ImageError",
    "KvmError",
    "Machine",
    "Pmem",
    "Predicate",
    "Probe",
    "Rng",
    "Snapshot",
    "SveRequest",
    "TimeoutExpired",
    "UsageError",
    "Vector",
    "VmmError",
    "confine",
    "restore",
    "save",
)

_HOMES = {
    "Config": "pyvmm.config",
    "SveRequest": "pyvmm.config",
    "Disk": "pyvmm.config",
    "Machine": "pyvmm.machine.machine",
    "Pmem": "pyvmm.config",
    "Predicate": "pyvmm.arm64.lanes",
    "Probe": "pyvmm.svecheck.probe",
    "Snapshot": "pyvmm.snapshot.snapshot",
    "Rng": "pyvmm.config",
    "Vector": "pyvmm.arm64.lanes",
    "confine": "pyvmm.sandbox.confine",
    "restore": "pyvmm.snapshot.restorer",
    "save": "pyvmm.snapshot.save",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES.get(name, "pyvmm.errors")), name)
    globals()[name] = value
    return value
