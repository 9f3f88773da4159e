"""What of pyvmm itself travels into the emulated host: its code, its guests, the KVM extension."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import pyvmm

PACKAGE: Final = Path(pyvmm.__file__).parent
EXTENSION: Final = "_kvm.abi3.so"
NOT_SENT: Final = (".pyc", ".so")
COMPILED: Final = "__pycache__"  # while Python writes there, files come and go under other names


def files() -> list[Path]:
    """The files of the pyvmm package that travel, relative to it, sorted."""
    return sorted(
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*")
        if path.suffix not in NOT_SENT and path.name[0] != "." and path.parent.name != COMPILED
        if path.is_file()
    )


def fingerprint() -> str:
    """A hash of everything that travels: another one means another emulated host."""
    digest = hashlib.sha256()
    for path in files():
        digest.update(f"{path}\0".encode())
        digest.update(hashlib.sha256((PACKAGE / path).read_bytes()).digest())
    return digest.hexdigest()
