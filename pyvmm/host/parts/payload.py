"""The files of pyvmm that are copied into the emulated host: code, guests, KVM extension."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import pyvmm

PACKAGE: Final = Path(pyvmm.__file__).parent
EXTENSION: Final = "_kvm.abi3.so"
NOT_SENT: Final = (".pyc", ".so")
COMPILED: Final = "__pycache__"  # Python renames files there


def files() -> list[Path]:
    """Return the paths of the copied files, sorted and relative to the pyvmm package."""
    return sorted(
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*")
        if path.suffix not in NOT_SENT and path.name[0] != "." and path.parent.name != COMPILED
        if path.is_file()
    )


def fingerprint() -> str:
    """Return a hash of all copied files; it is part of the emulated host's identity."""
    digest = hashlib.sha256()
    for path in files():
        digest.update(f"{path}\0".encode())
        digest.update(hashlib.sha256((PACKAGE / path).read_bytes()).digest())
    return digest.hexdigest()
