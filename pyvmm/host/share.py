"""Inside the emulated host: the user's files at their own paths, and fresh randomness.

The user's file tree comes through QEMU's 9p at /run/pyvmm/user; every real directory at its top
is then bound at its own path, but for those that make up the emulated host itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyvmm.errors import HostError

# What the emulated host has of its own; of the user's /usr these three are shared.
OWN: Final = frozenset({
    "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "proc", "sys", "dev", "run",
})  # fmt: skip
SHARED_USR: Final = ("src", "local", "share")


def hidden(path: Path) -> bool:
    """Whether an absolute path lies where the emulated host has its own files instead."""
    parts = path.parts[1:]
    if not parts or parts[0] not in OWN:
        return False
    return not (parts[0] == "usr" and len(parts) > 1 and parts[1] in SHARED_USR)


def refuse_hidden(files: Iterable[Path]) -> None:
    """Make sure that a command in the emulated host sees those files, and where it is started.

    Raises:
        HostError: it has its own files there.
    """
    try:
        cwd = Path.cwd()
    except FileNotFoundError as error:
        raise HostError("the current directory does not exist any more") from error
    if hidden(cwd):
        raise _unseen(cwd, "run pyvmm from another directory")
    for file in files:
        real = Path(os.path.realpath(file))
        if hidden(real) and not _is_special(real):
            raise _unseen(real, "use a copy in another directory")


def _is_special(path: Path) -> bool:
    """Whether that is something like /dev/null, which the emulated host has as well."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _unseen(path: Path, hint: str) -> HostError:
    return HostError(
        f"the emulated host has its own {Path(*path.parts[:2])}: it does not see {path}", hint=hint
    )
