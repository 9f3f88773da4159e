"""Saved hosts: the RAM and devices of an emulated host after its cold boot, in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from pyvmm.base.dirs import cache_dir, runtime_dir, try_lock
from pyvmm.host.parts import payload, trees
from pyvmm.host.parts.trees import Tree
from pyvmm.host.running import all_running, running_at, sessions, stop
from pyvmm.host.settings import HostSettings

RECIPE: Final = 1  # raised when hosts saved by older code must not be used
KEEP: Final = 8  # saved hosts; the least recently used ones are removed
RECENT_S: Final = 60.0  # a command may be about to start a host used so recently
KEEP_ALIKE: Final = 3  # with the same settings, made by the code of different clones
MAX_MEMORY: Final = 4 << 30
MAX_CPUS: Final = 4  # more make TCG slower


def key(settings: HostSettings, made_of: Iterable[Tree | None] | None = None) -> str:
    """Return a host's name: kernel, QEMU, and a hash of everything that it depends on.

    ``made_of`` are the trees of the kernel and QEMU; the default is the trees in the cache that the
    settings select. They are part of the hash: one requested version can mean different trees.
    """
    parts = [
        str(RECIPE), settings.kernel, settings.qemu, settings.cpu, payload.fingerprint(),
        str(memory_size()), str(cpus()), str(os.getuid()), str(cache_dir()),
    ]  # fmt: skip
    if settings.append:
        parts.append(settings.append)
    if settings.machine:
        parts.append(f"-M {settings.machine}")
    found = trees.chosen(settings) if made_of is None else made_of
    parts += [tree.identity for tree in found if tree is not None]
    for path in (settings.kernel, settings.qemu):
        if os.sep in path:
            status = Path(path).stat()
            parts.append(f"{Path(path).resolve()} {status.st_mtime_ns} {status.st_size}")
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{Path(settings.kernel).name[:12]}-{Path(settings.qemu).name[:8]}-{digest[:10]}"


def memory_size() -> int:
    """Return an emulated host's RAM in bytes: 4 GiB, or half of this machine's if less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(MAX_MEMORY, physical // 2 >> 20 << 20)


def cpus() -> int:
    """Return an emulated host's number of CPUs: at least two (see clock.py), at most MAX_CPUS."""
    return max(2, min(os.cpu_count() or 1, MAX_CPUS))


def directory(name: str) -> Path:
    """Return the directory of the saved host of that name."""
    return cache_dir("hosts") / name


def facts(path: Path) -> dict[str, Any] | None:
    """Return what a saved host is made of, or None if it does not exist or is damaged."""
    try:
        found = json.loads((path / "facts.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def everyone() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the saved hosts in the cache, with their facts (an empty dict if damaged)."""
    for path in sorted(cache_dir("hosts").glob("[!.]*")):
        yield path, facts(path) or {}


def prune(newest: Path, settings: HostSettings) -> None:
    """Remove saved hosts beyond the limits, for all hosts and for those with these settings.

    An idle host that runs other code with these settings is ended.
    """
    wanted = vars(settings)
    for running in all_running():
        outdated = running.facts.get("settings") == wanted and running.path.name != newest.name
        if outdated and sessions(running) == 0:
            stop(running)
    others = [(path, found) for path, found in everyone()
              if path != newest and running_at(runtime_dir() / path.name) is None]  # fmt: skip
    others.sort(key=lambda item: _last_used(item[0]), reverse=True)
    alike = 1
    for number, (path, found) in enumerate(others):
        alike += found.get("settings") == wanted
        surplus = found.get("settings") == wanted and alike > KEEP_ALIKE
        recent = time.time() - _last_used(path) < RECENT_S
        if (surplus or number >= KEEP - 1) and not recent:
            remove(path)
    _sweep(newest.parent)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0


def _sweep(hosts: Path) -> None:
    """Remove the leftovers of killed removals and cold boots."""
    for leftover in hosts.glob(".*.gone-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in hosts.glob(".*.tmp-*"):
        lock = try_lock(hosts / f"{leftover.name.partition('.tmp-')[0]}.lock")
        if lock is not None:  # no process is making that host
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)


def remove(path: Path) -> None:
    """Remove a saved host; rename it first, so that no command finds half of it."""
    doomed = path.with_name(f".{path.name}.gone-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
