"""Every stored input of every fuzzing target: the corpora, and inputs that once were crashes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.corpora import LARGEST, MOST, choose
from fuzz.runs import C_TARGETS
from fuzz.target import CORPUS, CRASHES, HERE, TARGETS, load, stored
from tests.conftest import tool

ALL = 300 << 10  # bytes of all corpora


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("name", TARGETS)
def test_target_handles_its_stored_inputs_and_seeds(name: str) -> None:
    target = load(name)
    inputs = [path.read_bytes() for path in stored(name)]

    assert len(inputs) > 1
    for data in (*inputs, *target.seeds(), b"", b"\0"):
        target.check(data)


@pytest.mark.parametrize("name", [name for name in TARGETS if hasattr(load(name), "mutate")])
def test_mutation_is_as_long_as_allowed_at_most(name: str) -> None:
    """atheris ends at a longer one."""
    target = load(name)
    mutate: Callable[[bytes, int, int], bytes | None] = vars(target)["mutate"]
    for data in target.seeds():
        for spare in (-5, -1, 0, 1, 2, 3, 20):
            most = len(data) + spare
            for seed in range(20):
                changed = mutate(data, most, seed)
                assert changed is None or len(changed) <= most


@pytest.mark.parametrize("name", C_TARGETS)
def test_c_target_handles_its_stored_inputs(name: str, tmp_path: Path) -> None:
    program = tmp_path / name
    options = ["-std=gnu11", "-DFUZZ_FILES", "-O1", "-pthread", "-w", "-o", str(program)]
    subprocess.run([tool("gcc"), *options, HERE / f"c/{name}.c"], check=True)

    files = stored(name)

    assert len(files) > 1
    subprocess.run([str(program), *map(str, files)], check=True)


def test_corpora_are_small_and_belong_to_targets() -> None:
    files = [path for top in (CORPUS, CRASHES) for path in top.rglob("*") if path.is_file()]

    assert {path.parent.name for path in files} <= {*TARGETS, *C_TARGETS}
    assert sum(path.stat().st_size for path in files) < ALL


def test_choose_keeps_inputs_of_all_sizes_within_the_limits() -> None:
    inputs = [bytes([n % 256]) * n for n in range(1, 2000)]

    kept = choose(inputs)

    assert len(kept) <= MOST
    assert sum(map(len, kept)) <= LARGEST
    assert len(kept[0]) < 100 < 1000 < len(kept[-1])


def test_choose_keeps_everything_small() -> None:
    assert choose([b"a", b"bb", b"a"]) == [b"a", b"bb"]
