"""Snapshots with made-up states: KVM accepts them, or the restore fails with one error."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from pyvmm.config import Config
from pyvmm.errors import VmmError
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from pyvmm.snapshot.restorer import Restorer
from pyvmm.snapshot.save import save
from pyvmm.snapshot.state import State
from tests import programs

pytestmark = pytest.mark.kvm

MUTANTS = 40
ODD: list[Any] = [None, -1, 0, 1, 7, 1 << 64, "x", "0x0", "0xffffffffffffffff", "0x" + "f" * 64,
                  True, [], {}, [128], "gicv3-its", "STOPPED"]  # fmt: skip


def mutated(rng: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with up to three values replaced."""
    changed = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        place: Any = changed
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = rng.choice(keys)
            if not isinstance(place[key], dict | list) or not place[key]:
                break
            place = place[key]
        place[key] = rng.choice(ODD)
    return changed


def test_restore_accepts_or_refuses_any_made_up_state(tmp_path: Path) -> None:
    path = tmp_path / "honest.snap"
    config = Config(image=programs.write("spin", tmp_path), vcpus=2, memory=2 * MIB)
    with Machine(config, lambda data: None) as vm:
        save(vm, path)
    rng = random.Random(7)
    taken = refused = 0

    for _ in range(MUTANTS):
        restorer = Restorer(path)
        try:
            document = json.loads(json.dumps(mutated(rng, restorer.file.document)))
            restorer.state = State.of(document, "made up")
            with Machine(restorer.state.config, lambda data: None, restorer=restorer) as vm:
                save(vm, tmp_path / "x.snap")
            taken += 1
        except VmmError:
            refused += 1
        finally:
            with contextlib.suppress(VmmError):
                restorer.close()

    assert taken and refused, (taken, refused)
