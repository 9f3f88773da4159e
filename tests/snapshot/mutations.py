"""Random changes of JSON documents: the states of snapshots, and what other processes send."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

ESCAPE = "\x1b[31m\x9b31m\u202e\x07"
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 7, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 1 << 70, 10**400, -(10**30),
    1.5, -0.0, 1e300, "", "x", "0x", "0x0", "-0x1", "0x" + "f" * 16, "0x" + "f" * 1024, "0x_1",
    "\0", "a\0b", "\ud800", ESCAPE, "y" * 70_000, "/dev/zero", "/dev/tty", "../../etc/passwd",
    [], {}, [[]], {"a": 1}, [0], [-1], [1 << 70], ["x"], [None], [128, 256], "gicv2", "gicv3-its",
    "SVE", "STOPPED", "virtio", {"kind": "Rng"}, {"kind": "Hotplug", "size": 1 << 60},
    {ESCAPE: ESCAPE}, {"0x6030000000100040": "0x1"},
]  # fmt: skip
KEYS = ["x", "kind", "", ESCAPE, "\ud800", "0x1", "registers"]
Place = tuple[str | int, ...]


def leaves(value: Any, path: Place = ()) -> Iterator[Place]:
    """Yield every place in a document."""
    if path:
        yield path
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, below in items:
        yield from leaves(below, (*path, key))


def mutate(rng: random.Random, saved: Any, where: list[Place]) -> Any:
    """Return a copy with one to three values set, removed, repeated or shifted."""
    changed = copy.deepcopy(saved)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        *way, last = rng.choice(where)
        above: Any = changed
        try:
            for key in way:
                above = above[key]
            _change(rng, above, last)
        except (KeyError, IndexError, TypeError):  # an earlier change removed the place
            continue
    return changed


def _change(rng: random.Random, above: Any, key: Any) -> None:
    value = above[key]
    match rng.choice(["set", "set", "set", "remove", "repeat", "shift", "add"]):
        case "set":
            above[key] = copy.deepcopy(rng.choice(ODD))
        case "remove":
            del above[key]
        case "repeat" if isinstance(value, list):
            value.extend(copy.deepcopy(value) * rng.choice([1, 2, 300]))
        case "repeat" if isinstance(above, list):
            above.insert(0, copy.deepcopy(value))
        case "shift" if type(value) is int:
            above[key] = value + rng.choice([1, -1, 4096, -4096, 1 << 20, 1 << 33, -2 * value])
        case "shift" if isinstance(value, str) and value.startswith("0x"):
            above[key] = hex(int(value, 16) ^ 1 << rng.randrange(64))
        case "add" if isinstance(value, dict):
            value[rng.choice(KEYS)] = copy.deepcopy(rng.choice(ODD))
        case "add" if isinstance(value, list):
            value.append(copy.deepcopy(rng.choice(ODD)))
