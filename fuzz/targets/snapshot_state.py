"""The state in a snapshot, a JSON document, as every command reads it: up to KVM, without it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.jsonmutator import mutated as mutate
from fuzz.snapshots import scratch, snapshot
from pyvmm.errors import VmmError
from pyvmm.snapshot.restorer import Restorer
from pyvmm.snapshot.restorestate import plan_of
from tests.snapshot import sample
from tests.snapshot.looking import look_at_everything
from tests.snapshot.states import documents

__all__ = ["check", "mutate", "seeds"]

KEPT_REGISTERS = 12  # of each kind, in a seed


@functools.cache
def good() -> Path:
    """Return a snapshot to compare with."""
    path = scratch() / "good.snap"
    path.write_bytes(snapshot({}, next(seeds()), b"", b""))
    return path


def check(data: bytes) -> None:
    """Show, compare and prepare to restore a snapshot with that state, or refuse it."""
    path = scratch() / "bad.snap"
    path.write_bytes(snapshot({}, data, b"", b""))
    try:
        look_at_everything(path, good())
    except VmmError as error:
        assert error.exit_code in (1, 2, 3)
    try:
        with Restorer(path) as restorer:
            plan_of(restorer.state)
    except VmmError as error:
        assert error.exit_code in (1, 2, 3)


def seeds() -> Iterator[bytes]:
    """Yield the states of machines with different parts, with few registers."""
    for document in documents(Path("/home/user/disk")):
        for vcpu in document["vcpus"]:
            vcpu["registers"] = _few(vcpu["registers"])
        for block in document["gic"]["blocks"]:
            block["registers"] = dict(list(block["registers"].items())[:3])
        document["devices"] = {"rtc": document["devices"]["rtc"]}
        yield json.dumps(document, separators=(",", ":")).encode()


def _few(registers: dict[str, Any]) -> dict[str, Any]:
    """Return the registers that a snapshot needs, and some of the others."""
    needed = {f"{reg:#018x}" for reg in (sample.MPIDR, sample.ZCR, *sample.NEEDED)}
    kept = {name: value for name, value in registers.items() if name in needed}
    return kept | dict(list(registers.items())[-KEPT_REGISTERS:])
