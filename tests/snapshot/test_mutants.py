"""Mutated states with right hashes, through the commands that read snapshots.

A command may refuse a file, but never with a traceback or an escape sequence, and it touches no
file that the user has not named.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli import main
from pyvmm.config import Balloon, Disk, Hotplug, Pmem, Rng
from pyvmm.errors import VmmError
from pyvmm.layout import MIB
from pyvmm.snapshot.restorer import Restorer
from pyvmm.snapshot.restorestate import plan_of
from pyvmm.snapshot.writer import write_snapshot
from tests.snapshot import sample
from tests.snapshot.files import save_machine
from tests.snapshot.test_hostile import leaves

SHORT, LONG = 300, 5000
CODES = {0, 1, 2, 3}
CODES_FOUND = {0, 1, 2}  # 3 is about a host, and there is none
IN_ALL_EVENTS = 0xFFF
PROBE = {
    "kvm": {
        "vcpus_at_most": 8, "guest_physical_address_bits": 40, "sve_vector_lengths": [128, 256],
        "cpu_features": "PAUTH,PVTIME", "gicv2": True, "gicv3": True, "gicv3_its": True,
        "counter_hz": 62_500_000,
    },
    "registers": {},
}  # fmt: skip
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


def document(secret: Path) -> dict[str, Any]:
    """Return the state of a machine with every kind of device; its files are the user's."""
    state = sample.state()
    devices = (Hotplug(size=4 * MIB), Balloon(), Disk(path=secret), Pmem(path=secret), Rng())
    config = state.config.replace(devices=devices, vcpu_affinity=frozenset({0}))
    saved: dict[str, Any] = json.loads(json.dumps(state.replace(config=config).document()))
    saved["devices"] |= {f"virtio{n}": {"status": 15, "queues": [{"size": 64}]} for n in range(5)}
    saved["warnings"] = ["a warning"]
    return saved


def places(saved: dict[str, Any]) -> list[Place]:
    """Return the places to change: each eighth of the registers, and all others."""
    found = list(leaves(saved))
    registers = [place for place in found if "registers" in place[:-1]]
    return [*(place for place in found if place not in registers), *registers[::8]]


def mutate(rng: random.Random, saved: dict[str, Any], where: list[Place]) -> dict[str, Any]:
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


@pytest.mark.parametrize(
    "count", [SHORT, pytest.param(LONG, marks=[pytest.mark.matrix, pytest.mark.timeout(3600)])]
)
def test_commands_read_or_refuse_any_mutated_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    secret, probe = tmp_path / "home/secret", tmp_path / "probe.json"
    secret.parent.mkdir()
    secret.write_bytes(bytes(2 * MIB))
    probe.write_text(json.dumps(PROBE))
    good, bad = tmp_path / "in/good.snap", tmp_path / "in/bad.snap"
    good.parent.mkdir()
    save_machine(good, sample.state())
    commands = (
        ["show", bad], ["show", bad, "--json"], ["diff", bad, good], ["diff", good, bad, "--json"],
        ["check", bad, "--on", probe],
    )  # fmt: skip
    saved, rng = document(secret), random.Random(16)
    where, codes = places(saved), set()

    with watched(secret.parent) as events:
        for number in range(count):
            write_snapshot(bad, mutate(rng, saved, where), [])
            for words in commands:
                code = main(["snapshot", *map(str, words)])
                out, err = capsys.readouterr()
                assert code in CODES and "unexpected" not in err, (number, words, err)
                assert (out + err).replace("\n", "").isprintable(), (number, words)
                codes.add(code)
            prepare(bad)
            assert not events(), number
        secret.read_bytes()
        assert events()  # the watch works

    assert codes == CODES_FOUND


def prepare(path: Path) -> None:
    """Do what a restore does before it asks KVM for a VM."""
    try:
        with Restorer(path) as restorer:
            plan_of(restorer.state)
    except VmmError as error:
        assert error.exit_code in CODES


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[Callable[[], int]]:
    """Yield a function that returns how many bytes of events inotify has for a directory.

    Source: linux/inotify.h.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(fd, os.fsencode(directory), IN_ALL_EVENTS) >= 0

    def events() -> int:
        try:
            return len(os.read(fd, 1 << 16))
        except BlockingIOError:
            return 0

    try:
        yield events
    finally:
        os.close(fd)
