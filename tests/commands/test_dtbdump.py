"""The file of --dump-dtb: it has the newest machine's tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.commands._dtbdump import DtbDump
from pyvmm.config import Config
from pyvmm.errors import HostError, UsageError
from pyvmm.sandbox.confine import confine
from tests.sandbox.escape import in_child

TREES = (b"the first tree", b"the second", b"the third tree")


@pytest.mark.parametrize("confined", [True, False])
def test_file_has_the_newest_tree(confined: bool, tmp_path: Path) -> None:
    path = tmp_path / "tree.dtb"
    path.write_bytes(b"old")

    def work() -> list[str]:
        with DtbDump(path, confined=confined) as dump:
            dump.write(TREES[0])
            if confined:
                confine(Config(image=Path("guest")))
            for tree in TREES[1:]:
                dump.write(tree)
        return []

    assert in_child(work) == []
    assert path.read_bytes() == TREES[-1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("confined", [True, False])
def test_pipe_gets_all_trees(confined: bool, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    with DtbDump(fifo, confined=confined) as dump:
        for tree in TREES:
            dump.write(tree)

    assert os.read(reader, 100) == b"".join(TREES)
    os.close(reader)


def test_no_file_appears_for_a_machine_that_is_not_made(tmp_path: Path) -> None:
    with DtbDump(tmp_path / "tree.dtb", confined=True):
        pass

    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["/dev/full", "missing/tree.dtb", "x" * 300])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / request.param


@pytest.mark.parametrize("confined", [True, False])
def test_file_that_cannot_be_written_is_named(confined: bool, unwritable: Path) -> None:
    with (
        pytest.raises((UsageError, HostError), match=f"{unwritable}: cannot be written"),
        DtbDump(unwritable, confined=confined) as dump,
    ):
        dump.write(TREES[0])
