"""The tree of files that a command in the emulated host sees."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.host.confined import mounts, tree
from pyvmm.host.share import ALL, Needs
from tests.host.confined.conftest import OTHER_USER, Isolated

Attempt = Callable[[Path], Any]


@pytest.fixture
def at(place: Path) -> Path:
    """Return an empty directory for a tree."""
    path = place / "tree"
    path.mkdir()
    return path


@pytest.fixture
def work(place: Path) -> Path:
    """Return a directory with files, of the user that owns it."""
    path = place / "work"
    path.mkdir()
    for name in ("image", "disk", "secret"):
        (path / name).write_text(name)
    (path / "out").mkdir()
    (path / "out/old").write_text("old")
    return path


def inside(at: Path, path: Path) -> Path:
    return at / path.relative_to("/")


def outcome(attempt: Attempt, path: Path) -> str:
    """Return "done", or the name of the error."""
    try:
        attempt(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def read(path: Path) -> None:
    path.read_bytes()


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"+")


def replace(path: Path) -> None:
    new = path.with_name(".new")
    new.write_text("new")
    new.replace(path)


USERS = [None, pytest.param(OTHER_USER, marks=pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user"))]  # fmt: skip


@pytest.mark.parametrize("uid", USERS)
def test_tree_has_the_named_files_with_their_access_and_no_others(
    uid: int | None, at: Path, work: Path, isolated: Isolated
) -> None:
    if uid is not None:
        for path in (at, work, *work.rglob("*")):
            os.chown(path, uid, uid)
    needs = Needs(
        reads=(work / "image",), updates=(work / "disk",), creates=(work / "out/new",)
    )  # fmt: skip

    def attempts() -> list[str]:
        tree.make(at, needs, work)
        there = inside(at, work)
        return [
            outcome(read, there / "image"), outcome(append, there / "image"),
            outcome(append, there / "disk"), outcome(replace, there / "out/new"),
            outcome(replace, there / "out/old"), outcome(read, there / "secret"),
            outcome(append, there / "made"),
        ]  # fmt: skip

    assert isolated(attempts, uid) == [
        "done", "EROFS", "done", "done", "done", "ENOENT", "EROFS",
    ]  # fmt: skip
    assert (work / "disk").read_text() == "disk+"
    assert (work / "out/new").read_text() == "new"
    assert (work / "image").read_text() == "image"
    assert list(at.iterdir()) == []


def test_file_in_a_directory_to_write_in_can_be_replaced(
    at: Path, work: Path, isolated: Isolated
) -> None:
    needs = Needs(reads=(work / "out/old",), creates=(work / "out/old",))

    def attempts() -> str:
        tree.make(at, needs, work)
        return outcome(replace, inside(at, work / "out/old"))

    assert isolated(attempts) == "done"
    assert (work / "out/old").read_text() == "new"


def test_links_on_the_way_lead_to_the_files_that_they_lead_to_outside(
    at: Path, work: Path, place: Path, isolated: Isolated
) -> None:
    (place / "there").symlink_to("work")
    (work / "link").symlink_to(place / "there" / "image")

    def look() -> list[Any]:
        tree.make(at, Needs(reads=(place / "there/link",)), Path("/"))
        os.chroot(at)
        return [(place / "there/link").read_text(), names(work)]

    assert isolated(look) == ["image", ["image", "link"]]


def test_missing_directory_is_missing_in_the_tree(at: Path, work: Path, isolated: Isolated) -> None:
    def look() -> list[str]:
        tree.make(at, Needs(creates=(work / "missing/new",)), work)
        return [outcome(append, inside(at, work / "missing/new")), *names(inside(at, work))]

    assert isolated(look) == ["ENOENT"]


def test_extended_tree_has_the_files_until_their_mounts_are_removed(
    at: Path, work: Path, isolated: Isolated
) -> None:
    def attempts() -> list[str]:
        tree.make(at, Needs(reads=(work / "image",)), work)
        made = tree.extend(at, Needs(creates=(work / "out/x",)))
        there = inside(at, work)
        first = [outcome(append, there / "out/x"), outcome(append, there / "x")]
        for path in made:
            mounts.unmount(path)
        return [*first, outcome(append, there / "out/x"), outcome(read, there / "image")]

    assert isolated(attempts) == ["done", "EROFS", "EROFS", "done"]


def test_tree_of_everything_has_the_other_files_too_and_is_writable(
    at: Path, work: Path, isolated: Isolated
) -> None:
    def attempts() -> list[str]:
        tree.make(at, ALL, work)
        return [outcome(read, inside(at, work / "secret")), outcome(append, inside(at, work / "x"))]

    assert isolated(attempts) == ["done", "done"]


def test_tree_has_every_directory_at_the_top_so_that_it_can_be_extended(
    at: Path, isolated: Isolated
) -> None:
    def look() -> list[str]:
        tree.make(at, Needs(), Path("/"))
        return sorted(path.name for path in at.iterdir() if path.is_dir())

    names = isolated(look)

    assert {"tmp", "home"} <= set(names)
    assert not {"etc", "dev", "proc"} & set(names)
