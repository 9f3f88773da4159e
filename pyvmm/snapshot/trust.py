"""The files outside a snapshot that a restore opens, and whether it may open them.

A snapshot names its disks, its pmem files, its hugetlbfs and its parent.  One from a stranger could
name any file of the user.  So a restore opens a file only if one of these is true:

- the user gives it again, in place of the snapshot's
- it lies in the snapshot's own directory, and is not a hidden file
- the snapshot has the mark of this user: see mark.py
- the user trusts the snapshot
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyvmm.base.records import Record
from pyvmm.config import Config, DeviceConfig, Disk, Pmem
from pyvmm.errors import UsageError
from pyvmm.snapshot.reader import ForeignParent, SnapshotFile, beside
from pyvmm.snapshot.state import State

Backed = Disk | Pmem  # devices with a file
HUGETLBFS = "hugetlbfs"


class Outside(Record):
    """A file or directory outside the snapshot, which a restore opens."""

    what: str
    path: Path
    mode: str

    def __str__(self) -> str:
        real = Path(os.path.realpath(self.path))
        link = "" if real == self.path.absolute() else f" (in fact {real})"
        return f"{self.what} {self.path}{link}, {self.mode}"


def outside(config: Config) -> Iterator[Outside]:
    """Yield what a Config names."""
    for device in config.devices:
        if isinstance(device, Backed):
            mode = "read-only" if device.read_only else "read-write"
            yield Outside(_kind(device), device.path, mode)
    if config.hugetlbfs is not None:
        yield Outside(HUGETLBFS, config.hugetlbfs, "read-write")


def parents(snapshot: SnapshotFile) -> Iterator[Outside]:
    """Yield the parents of an open snapshot, the youngest first."""
    for parent in reversed(snapshot.chain()[:-1]):
        yield Outside("parent", parent.path, "read-only")


def admitted(
    path: Path, given: Sequence[DeviceConfig] = (), *, trust: bool = False
) -> tuple[SnapshotFile, State]:
    """Open a snapshot to restore it; ``given`` disks replace those of the state's Config.

    Raises: UsageError, if it names files that it may not open, or is damaged.
    """
    try:
        snapshot = SnapshotFile.open(path, trust=trust)
    except ForeignParent as error:
        state = State.of(error.file.document, str(path))
        others = _foreign(error.file, _replaced(state.config, given), given)
        parent = Outside("parent", error.parent, "read-only")
        raise _refusal(path, [parent, *others]) from None
    try:
        state = State.of(snapshot.document, str(path))
        config = _replaced(state.config, given)
        if not trust and (found := list(_foreign(snapshot, config, given))):
            raise _refusal(path, found)
    except BaseException:
        snapshot.close()
        raise
    return snapshot, state.replace(config=config)


def _foreign(
    snapshot: SnapshotFile, config: Config, given: Sequence[DeviceConfig]
) -> Iterator[Outside]:
    """Yield the named files that may not be opened, except those that are given again."""
    again = {_kind(device) for device in given}
    for one in outside(config):
        near = one.what != HUGETLBFS and beside(one.path, snapshot.path)
        if one.what not in again and not near and not snapshot.is_own:
            yield one


def _kind(device: DeviceConfig) -> str:
    return type(device).__name__.lower()


def _replaced(config: Config, given: Sequence[DeviceConfig]) -> Config:
    """Return the Config with the given devices' files in place of the saved ones."""
    devices = list(config.devices)
    for kind in (Disk, Pmem):
        new = [device for device in given if isinstance(device, kind)]
        places = [at for at, device in enumerate(devices) if isinstance(device, kind)]
        if not new:
            continue
        field = f"`devices.{kind.__name__.lower()}`"
        if len(new) != len(places):
            raise UsageError(
                f"{field}: the snapshot has {len(places)}, and {len(new)} are given",
                hint="give each of them, in the order that `pyvmm snapshot show` prints",
            )
        for at, device in zip(places, new, strict=True):
            saved = devices[at]
            assert isinstance(saved, Backed)
            if device.read_only and not saved.read_only:
                raise UsageError(f"{device}: the guest writes to it: leave ,ro out")
            device = device.replace(read_only=saved.read_only)
            if isinstance(device, Disk) and isinstance(saved, Disk):
                device = device.replace(direct=device.direct or saved.direct)
            devices[at] = device
    return config.replace(devices=tuple(devices))


def _refusal(path: Path, found: Sequence[Outside]) -> UsageError:
    again = {"disk": "`devices.disk`=FILE", "pmem": "`devices.pmem`=FILE"}
    options = dict.fromkeys(again[one.what] for one in found if one.what in again)
    ways = [*(f"give it again with {option}" for option in options), "use `trust`"]
    return UsageError(
        f"{path}: you did not save it here, and it names files elsewhere:\n  "
        + "\n  ".join(map(str, found)),
        hint=f"if the guest may use them: {', or '.join(ways)}",
    )
