"""The tree of the user's files that one command in an emulated host sees.

Its root is a small tmpfs, which is read-only for the command. It has the directories and symbolic
links on the way to the command's files. Each file, and each directory to write in, is a bind mount.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

# ruff: noqa: PTH110, PTH112, PTH114 - these return False also for a path that the user cannot reach
from os.path import exists, isdir, islink
from pathlib import Path
from typing import Final

from pyvmm.host.confined import mounts
from pyvmm.host.share import OWN, Needs, hidden

ROOT: Final = Path("/")
OPTIONS: Final = "mode=755,size=1m,nr_inodes=10k"
SYSTEM: Final = frozenset({"boot", "lost+found"})
MOST_LINKS: Final = 40  # on the way to one file.  Source: Linux, MAXSYMLINKS


def make(at: Path, needs: Needs, cwd: Path) -> None:
    """Mount a tree at an empty directory.

    It has the directories of the user's / (they are empty): the emulated host gives each of them
    its own path when the command starts.

    Raises: OSError.
    """
    if needs.everything:
        mounts.bind(ROOT, at, writable=True)
        return
    mounts.mount("files", at, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, OPTIONS)
    try:
        for path in _top_level():
            _copy(path, at)
        _make_way(cwd, at)
        extend(at, needs)
    except BaseException:
        mounts.unmount(at)
        raise


def extend(at: Path, needs: Needs) -> list[Path]:
    """Add files to a tree, and return the new mounts.

    The tree of a command that sees everything is never extended.  Raises: OSError.
    """
    made: list[Path] = []
    mounts.set_writable(at, True)
    try:
        for path in needs.files:
            _make_way(path, at)
        for real, writable in _to_bind(needs):
            target = at / real.relative_to(ROOT)
            _make_point(real, target)
            mounts.bind(real, target, writable=writable)
            made.append(target)
    except BaseException:
        for target in reversed(made):
            mounts.unmount(target)
        raise
    finally:
        mounts.set_writable(at, False)
    return made


def _to_bind(needs: Needs) -> Iterator[tuple[Path, bool]]:
    """Yield the real paths to bind, and whether each is writable; a directory before its files.

    A writable directory has no mounts in it: a mounted file could not be replaced.
    """
    wanted: dict[Path, bool] = {}
    for path in needs.reads:
        wanted.setdefault(_real(path), False)
    for path in needs.updates:
        wanted[_real(path)] = True
    for path in needs.creates:
        wanted[_real(path).parent] = True
    for path in sorted(wanted, key=lambda path: len(path.parts)):
        above = [wanted[parent] for parent in path.parents if parent in wanted]
        if path == ROOT or hidden(path) or not exists(path):
            continue
        if not above or (wanted[path] and True not in above):
            yield path, wanted[path]


def _top_level() -> Iterator[Path]:
    """Yield the directories and links in which a user may have files.

    Each costs a mount in the emulated host: see pyvmm/host/inside/files.py.
    """
    yield from (path for path in ROOT.iterdir() if path.name not in OWN | SYSTEM)


def _make_way(path: Path, at: Path) -> None:
    """Make the symbolic links on the way to a path, and the directories that exist on it."""
    for link in _links(path):
        if not hidden(link):
            _copy(link, at)
    real = _real(path)
    if not hidden(real):
        place = next(place for place in (real, *real.parents) if isdir(place))
        _make_directories(at / place.relative_to(ROOT))


def _links(path: Path) -> Iterator[Path]:
    """Yield the symbolic links that the kernel follows on the way to an absolute path."""
    names = list(reversed(path.parts[1:]))
    place, followed = ROOT, 0
    while names:
        name = names.pop()
        if name == "..":
            place = place.parent
        elif islink(place / name) and followed < MOST_LINKS:
            followed += 1
            yield place / name
            target = (place / name).readlink()
            if target.is_absolute():
                place = ROOT
            names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        else:
            place /= name


def _copy(path: Path, at: Path) -> None:
    """Make the directory or the symbolic link of that path in the tree, if the path is one."""
    target = at / path.relative_to(ROOT)
    if islink(path):
        _make_directories(target.parent)
        if not os.path.lexists(target):
            target.symlink_to(path.readlink())
    elif isdir(path):
        _make_directories(target)


def _make_directories(path: Path) -> None:
    """Make a directory, unless a mounted directory has it already."""
    if not isdir(path):
        path.mkdir(parents=True)


def _make_point(real: Path, target: Path) -> None:
    """Make the file or directory over which a path is mounted."""
    if isdir(real):
        _make_directories(target)
    elif not exists(target):
        _make_directories(target.parent)
        target.touch()


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def show(paths: Iterable[tuple[Path, bool]], at: Path) -> None:
    """Bind paths at their own places below a directory; each is a path and whether it is writable.

    Raises: OSError.
    """
    for path, writable in paths:
        target = at / path.relative_to(ROOT)
        _make_point(path, target)
        mounts.bind(path, target, writable=writable)
