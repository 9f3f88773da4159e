"""Mutated states with right hashes, through the commands that read snapshots.

A command may refuse a file, but never with a traceback or an escape sequence, and it touches no
file that the user has not named.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli import main
from pyvmm.errors import VmmError
from pyvmm.layout import MIB
from pyvmm.snapshot.restorer import Restorer
from pyvmm.snapshot.restorestate import plan_of
from pyvmm.snapshot.writer import write_snapshot
from tests.snapshot import sample
from tests.snapshot.files import save_machine
from tests.snapshot.mutations import Place, leaves, mutate
from tests.snapshot.states import documents

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
    states = [(saved, places(saved)) for saved in documents(secret)]
    rng, codes = random.Random(16), set()

    with watched(secret.parent) as events:
        for number in range(count):
            write_snapshot(bad, mutate(rng, *states[number % len(states)]), [])
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


def places(saved: dict[str, Any]) -> list[Place]:
    """Return the places to change: each eighth of the registers, and all others."""
    found = list(leaves(saved))
    registers = [place for place in found if "registers" in place[:-1]]
    return [*(place for place in found if place not in set(registers)), *registers[::8]]


def prepare(path: Path) -> None:
    """Do what a restore does before it asks KVM for a VM."""
    try:
        with Restorer(path) as restorer:
            plan_of(restorer.state)
    except VmmError as error:
        assert error.exit_code in CODES


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[Callable[[], list[bytes]]]:
    """Yield a function that returns the files of a directory that inotify has events for.

    Events of the directory itself do not count: another process may list it.

    Source: linux/inotify.h.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(fd, os.fsencode(directory), IN_ALL_EVENTS) >= 0

    def events() -> list[bytes]:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return []
        names = []
        while data:
            (length,) = struct.unpack_from("=12xI", data)
            names.append(data[16 : 16 + length].rstrip(b"\0"))
            data = data[16 + length :]
        return [name for name in names if name]

    try:
        yield events
    finally:
        os.close(fd)
