"""The user's files that a command in an emulated host needs, and whether it can see them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyvmm.base.records import Record
from pyvmm.errors import HostError, UsageError

# The emulated host has its own directories OWN at the top level. In its /usr, the directories
# SHARED_USR are those of the user.
OWN: Final = frozenset({
    "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "proc", "sys", "dev", "run",
})  # fmt: skip
SHARED_USR: Final = ("src", "local", "share")
VARIABLE: Final = "PYVMM_HOST_FILES"
EXTENTS: Final = ("named", "all")


class Needs(Record):
    """The user's files that a command uses, or ``everything``.

    It reads ``reads``, writes into the existing files ``updates``, and makes or replaces
    ``creates``: for that it can write everywhere in their directories.
    """

    reads: tuple[Path, ...] = ()
    updates: tuple[Path, ...] = ()
    creates: tuple[Path, ...] = ()
    everything: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """All of the files."""
        return (*self.reads, *self.updates, *self.creates)

    def __add__(self, other: Needs) -> Needs:
        return Needs(
            reads=self.reads + other.reads,
            updates=self.updates + other.updates,
            creates=self.creates + other.creates,
            everything=self.everything or other.everything,
        )


NOTHING: Final = Needs()
WHOLE: Final = "all-"  # how the name of a tree with everything begins
NO_TREE: Final = "-"  # the name of a tree without files
ALL: Final = Needs(everything=True)


def shares_all() -> bool:
    """Return whether the user wants every command to see all files (PYVMM_HOST_FILES=all)."""
    extent = os.environ.get(VARIABLE, EXTENTS[0])
    if extent not in EXTENTS:
        raise UsageError(f"{VARIABLE}={extent}: not one of {', '.join(EXTENTS)}")
    return extent == "all"


def hidden(path: Path) -> bool:
    """Return whether the emulated host has its own files at an absolute path."""
    parts = path.parts[1:]
    if not parts or parts[0] not in OWN:
        return False
    return not (parts[0] == "usr" and len(parts) > 1 and parts[1] in SHARED_USR)


def refuse_hidden(files: Iterable[Path]) -> None:
    """Check that a command in the emulated host sees the files and the current directory.

    Raises:
        HostError: the host has its own files there.
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
    """Return whether a path is not a regular file: the emulated host has /dev/null too."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _unseen(path: Path, hint: str) -> HostError:
    return HostError(
        f"the emulated host has its own {Path(*path.parts[:2])}: it does not see {path}", hint=hint
    )
