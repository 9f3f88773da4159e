"""Files that a snapshot names: a stranger's snapshot opens none of the user's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import pytest

from pyvmm.config import Disk, Pmem
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.dirty import DirtyPages
from pyvmm.machine.slots import MemorySlots
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot import mark
from pyvmm.snapshot.format import Memory, Parent, StateSection
from pyvmm.snapshot.pages import changed
from pyvmm.snapshot.reader import ForeignParent, SnapshotFile
from pyvmm.snapshot.transfer import flatten
from pyvmm.snapshot.trust import admitted, outside
from pyvmm.snapshot.writer import finish, write_snapshot
from tests.snapshot import sample
from tests.snapshot.files import BASE, DOCUMENT, SIZE


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a user without a key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """Yield a file of the user's, which must stay as it is."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home/secret"
    path.write_bytes(b"mine" * 1024)
    yield path
    assert path.read_bytes() == b"mine" * 1024


def snapshot(
    path: Path,
    *devices: Disk | Pmem,
    key: bytes | None = None,
    hugetlbfs: Path | None = None,
    parent: SnapshotFile | None = None,
) -> Path:
    """Write a snapshot of a machine with those devices."""
    state = sample.state()
    config = state.config.replace(devices=devices, hugetlbfs=hugetlbfs)
    path.parent.mkdir(exist_ok=True)
    document = state.replace(config=config).document()
    write_snapshot(path, document, [], key=key, parent=parent)
    return path


def opened(path: Path, *given: Disk | Pmem, trust: bool = False) -> list[Path]:
    """Return the files that a restore would open."""
    file, state = admitted(path, given, trust=trust)
    file.close()
    return [one.path for one in outside(state.config)]


def test_snapshot_of_a_stranger_opens_no_file_of_the_user(tmp_path: Path, secret: Path) -> None:
    path = snapshot(
        tmp_path / "in/evil.snap",
        Disk(path=secret), Pmem(path=secret, read_only=True), hugetlbfs=tmp_path,
    )  # fmt: skip

    with pytest.raises(UsageError) as caught:
        opened(path)

    assert caught.value.message.splitlines() == [
        f"{path}: you did not save it here, and it names files elsewhere:",
        f"  disk {secret}, read-write",
        f"  pmem {secret}, read-only",
        f"  hugetlbfs {tmp_path}, read-write",
    ]
    assert "`trust`" in (caught.value.hint or "")
    assert opened(path, trust=True) == [secret, secret, tmp_path]


def test_own_snapshot_opens_what_it_names(tmp_path: Path, secret: Path) -> None:
    path = snapshot(tmp_path / "in/own.snap", Disk(path=secret), key=mark.made_key())

    assert opened(path) == [secret]


def test_snapshot_of_another_user_or_machine_is_a_strangers(tmp_path: Path, secret: Path) -> None:
    mark.made_key()
    path = snapshot(tmp_path / "in/a.snap", Disk(path=secret), key=b"k" * mark.KEY_BYTES)

    with pytest.raises(UsageError, match="you did not save it here"):
        opened(path)


@pytest.mark.parametrize(
    "change",
    [
        {"state": StateSection(offset=4096, length=4096, sha256="0" * 64)},
        {"parent": Parent(sha256="0" * 64, path="x")},
        {"memory": Memory(offset=8192, length=4096)},
    ],
)
def test_mark_depends_on_all_of_the_header(tmp_path: Path, change: dict[str, Any]) -> None:
    key = mark.made_key()
    with SnapshotFile.open(snapshot(tmp_path / "in/a.snap", key=key)) as file:
        assert file.header.mark_with(key) == file.header.mark
        assert file.header.replace(**change).mark_with(key) != file.header.mark


def test_files_beside_the_snapshot_are_opened_but_hidden_ones_are_not(tmp_path: Path) -> None:
    near, hidden = tmp_path / "in/disk.img", tmp_path / "in/.bashrc"
    (tmp_path / "in").mkdir()
    near.touch()
    hidden.touch()

    assert opened(snapshot(tmp_path / "in/a.snap", Disk(path=near))) == [near]
    with pytest.raises(UsageError, match=r"\.bashrc, read-write"):
        opened(snapshot(tmp_path / "in/b.snap", Disk(path=hidden)))


def test_link_beside_the_snapshot_leads_nowhere_else(tmp_path: Path, secret: Path) -> None:
    link = tmp_path / "in/disk.img"
    path = snapshot(tmp_path / "in/a.snap", Disk(path=link))
    link.symlink_to(secret)

    with pytest.raises(UsageError, match=rf"disk {link} \(in fact {secret}\), read-write"):
        opened(path)


def test_file_that_is_given_again_is_opened_in_place_of_the_named_one(
    tmp_path: Path, secret: Path
) -> None:
    path = snapshot(tmp_path / "in/a.snap", Disk(path=secret), Pmem(path=secret))
    one, other = Disk(path=tmp_path / "one"), Pmem(path=tmp_path / "other")

    with pytest.raises(UsageError, match=rf"elsewhere:\n  pmem {secret}, read-write$"):
        opened(path, one)
    assert opened(path, one, other) == [one.path, other.path]
    assert opened(path, Disk(path=secret), Pmem(path=secret)) == [secret, secret]
    with pytest.raises(UsageError, match=r"`devices\.disk`: the snapshot has 1, and 2 are given"):
        opened(path, one, one, other)
    with pytest.raises(UsageError, match="leave ,ro out"):
        opened(path, one.replace(read_only=True), other)


def test_given_disk_keeps_the_mode_of_the_saved_one(tmp_path: Path, secret: Path) -> None:
    path = snapshot(tmp_path / "in/a.snap", Disk(path=secret, read_only=True, direct=True))

    file, state = admitted(path, [Disk(path=tmp_path / "one")])
    file.close()

    assert state.config.devices == (Disk(path=tmp_path / "one", read_only=True, direct=True),)


def test_parent_elsewhere_is_refused_with_all_other_files(tmp_path: Path, secret: Path) -> None:
    with SnapshotFile.open(snapshot(tmp_path / "far/parent.snap")) as parent:
        path = snapshot(tmp_path / "in/child.snap", Disk(path=secret), parent=parent)
        own = snapshot(tmp_path / "in/own.snap", key=mark.made_key(), parent=parent)

    with pytest.raises(ForeignParent, match="its parent is elsewhere"):
        SnapshotFile.open(path)
    with pytest.raises(UsageError) as caught:
        opened(path)
    assert [line.split()[0] for line in caught.value.message.splitlines()[1:]] == [
        "parent", "disk",
    ]  # fmt: skip
    assert opened(path, trust=True) == [secret]
    assert opened(own) == []


def test_flatten_marks_own_snapshots_only(tmp_path: Path) -> None:
    for name, key, own in (("own", mark.made_key(), True), ("theirs", None, False)):
        with SnapshotFile.open(snapshot(tmp_path / name, key=key)) as file:
            flatten(file, tmp_path / f"flat-{name}")
        with SnapshotFile.open(tmp_path / f"flat-{name}") as file:
            assert file.is_own is own


def test_special_file_is_not_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    with pytest.raises(UsageError, match="not a regular file"):
        SnapshotFile.open(fifo)
    with pytest.raises(UsageError, match="neither a file nor a block device"):
        Pmem(path=fifo).window_size()


def test_key_is_made_once_and_is_the_users_alone(state_home: Path) -> None:
    assert mark.own_key() is None and not state_home.exists()

    key = mark.made_key()

    assert len(key) == mark.KEY_BYTES and mark.own_key() == mark.made_key() == key
    assert [p.name for p in (state_home / "pyvmm").iterdir()] == [mark.KEY]
    assert (state_home / "pyvmm").stat().st_mode & 0o777 == 0o700
    assert (state_home / "pyvmm" / mark.KEY).stat().st_mode & 0o777 == 0o600


def test_key_that_others_can_read_is_refused(state_home: Path) -> None:
    mark.made_key()
    (state_home / "pyvmm" / mark.KEY).chmod(0o644)

    with pytest.raises(HostError, match="that only you can read"):
        mark.made_key()


def test_snapshot_of_version_1_is_read_and_has_no_mark(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a", DOCUMENT, [])
    data = (tmp_path / "a").read_bytes()
    body = data[len(b"pyvmm snapshot 2 ") + 65 : 4096].replace(b',\n "mark": null', b"")
    body = body.ljust(4096 - len(b"pyvmm snapshot 1 ") - 65, b"\n")
    first = b"pyvmm snapshot 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    (tmp_path / "old").write_bytes(first + data[4096:])

    with SnapshotFile.open(tmp_path / "old") as file:
        assert (file.version, file.is_own, file.document) == (1, False, DOCUMENT)


def test_tracked_pages_are_used_after_the_file_was_marked(tmp_path: Path) -> None:
    path = tmp_path / "a"
    bare = write_snapshot(path, DOCUMENT, [])
    with path.open("r+b") as file:
        identity, warnings = finish(file.fileno(), path)

    with SnapshotFile.open(path) as parent, GuestMemory(BASE, SIZE) as memory:
        dirty = DirtyPages(memory, MemorySlots.__new__(MemorySlots), ())
        dirty.since, dirty._flags = bare, bytearray(b"\0\1")
        assert (parent.is_own, parent.identity, warnings) == (True, identity, ())
        assert identity != bare
        # By content no page differs.
        assert changed(memory, parent, dirty) == [(BASE + PAGESIZE, BASE + 2 * PAGESIZE)]
