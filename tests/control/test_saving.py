"""A save: the client opens and names the files, the VM writes; no KVM is needed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.base.dirs import state_dir
from pyvmm.base.loop import Loop
from pyvmm.control import client
from pyvmm.control.server import Server
from pyvmm.control.sockets import Claim
from pyvmm.control.wire import Message, pack
from pyvmm.errors import UsageError, VmmError
from pyvmm.snapshot import mark
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.writer import write_into
from tests.host.conftest import wait_for
from tests.snapshot.files import save_machine
from tests.snapshot.sample import state

pytestmark = pytest.mark.usefixtures("own")


class FakeVm:
    """Handlers that write to the first descriptor, and record what happens."""

    def __init__(self) -> None:
        self.error: VmmError | None = None
        self.events: list[str] = []
        self.seen: list[int] = []

    def save(self, request: Message) -> Message:
        peer = request["peer"]
        self.seen = list(peer.fds)
        if self.error is not None:
            raise self.error
        write_into(peer.fds[0], {"parents": len(peer.fds) - 1}, [])
        peer.on_close = lambda: self.events.append("resumed")
        return {"file": request["file"], "parents": request["parents"], "warnings": ["of the VM"]}

    def stop(self, request: Message) -> Message:
        with SnapshotFile.open(Path(os.environ["TARGET"])) as snapshot:
            self.events.append(f"stopped, the file is own: {snapshot.is_own}")
        request["peer"].on_close = None
        self.ended.set()
        return {}

    ended: threading.Event


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "new.snap"
    path.write_text("old")
    monkeypatch.setenv("TARGET", str(path))
    return path


@pytest.fixture
def vm(own: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeVm, Path]]:
    """Serve a fake VM that disconnects its clients once it is stopped."""
    fake = FakeVm()
    fake.ended = threading.Event()
    with Claim("it") as claim, Loop() as loop:
        serving = Server(loop, claim, {"save": fake.save, "stop": fake.stop})

        def end() -> None:
            fake.ended.wait()
            loop.stop()

        thread, waiter = threading.Thread(target=loop.run), threading.Thread(target=end)
        for each in (thread, waiter):
            each.start()

        def close() -> None:
            thread.join()
            serving.close()

        closer = threading.Thread(target=close)
        closer.start()
        yield fake, claim.path
        fake.ended.set()
        for each in (waiter, closer):
            each.join()


def ask(path: Path, target: Path, **more: Any) -> Message:
    return client.save(path, {"do": "save", "file": str(target), **more})


def test_file_has_its_name_before_the_vm_ends(vm: tuple[FakeVm, Path], target: Path) -> None:
    fake, path = vm

    reply = ask(path, target)

    assert reply["ok"]
    assert fake.events == ["stopped, the file is own: True"]  # read by its name, in "stop"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o600


def test_refused_save_leaves_the_old_file(vm: tuple[FakeVm, Path], target: Path) -> None:
    fake, path = vm
    fake.error = UsageError("not now")

    reply = ask(path, target)

    assert (reply["ok"], reply["error"]) == (False, "not now")
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]
    assert fake.events == []
    wait_for(lambda: not [fd for fd in fake.seen if Path(f"/proc/self/fd/{fd}").exists()])


def test_vm_continues_when_its_client_dies_before_the_rename(
    vm: tuple[FakeVm, Path], target: Path
) -> None:
    fake, path = vm
    with socket.socket(socket.AF_UNIX) as connection, target.open("wb") as new:
        client.connect(connection, path)
        request = {"do": "save", "file": str(target), "parents": []}
        client._send(connection, pack(request), [new.fileno()])
        connection.recv(1000)
        assert fake.events == []

    wait_for(lambda: fake.events == ["resumed"])


def test_parents_come_with_their_paths(vm: tuple[FakeVm, Path], target: Path) -> None:
    _, path = vm
    parent = target.with_name("parent.snap")
    save_machine(parent, state())

    reply = ask(path, target, parent=str(parent), resume=True)

    assert reply["parents"] == [str(parent)]
    with SnapshotFile.open(target) as snapshot:
        assert snapshot.document == {"parents": 1}
        assert (snapshot.is_own, snapshot.identity) == (True, reply["identity"])


def test_save_without_a_usable_key_warns(
    vm: tuple[FakeVm, Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = vm
    monkeypatch.setenv("XDG_STATE_HOME", str(target.parent / "state"))
    key = state_dir() / mark.KEY
    key.write_bytes(b"short")
    left = target.with_name(".other.01234567.tmp")
    left.touch()

    reply = ask(path, target, resume=True)

    with SnapshotFile.open(target) as snapshot:
        assert (snapshot.header.mark, snapshot.identity) == (None, reply["identity"])
    of_vm, of_key, of_left = reply["warnings"]
    assert of_vm == "of the VM"
    assert of_key.startswith(f"the snapshot has no mark of yours ({key} is not a key of 32 bytes")
    assert of_left == f"left by a killed save (unless a save is running now): {left}"


def test_what_is_no_snapshot_gets_no_name(
    vm: tuple[FakeVm, Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, path = vm
    monkeypatch.setattr("tests.control.test_saving.write_into", lambda fd, *_: os.write(fd, b"x"))

    with pytest.raises(UsageError, match="not a pyvmm snapshot"):
        ask(path, target)

    assert target.read_text() == "old"
    wait_for(lambda: fake.events == ["resumed"])


@pytest.mark.parametrize("names", [{"file": "a\0b"}, {"file": "a", "parent": "a\0b"}])
def test_path_that_no_file_can_have_is_refused(
    vm: tuple[FakeVm, Path], names: dict[str, str], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, _ = vm
    monkeypatch.chdir(target.parent)

    reply = client.answer({"vm": "it", "request": {"do": "save", **names}})

    assert "a path cannot hold a NUL" in reply["error"]
    assert fake.seen == []


def test_missing_parent_is_reported_before_the_vm_is_asked(
    vm: tuple[FakeVm, Path], target: Path
) -> None:
    fake, _ = vm

    request = {"do": "save", "file": str(target), "parent": str(target.with_name("none"))}
    reply = client.answer({"vm": "it", "request": request})

    assert "none: cannot be read: No such file or directory" in reply["error"]
    assert fake.seen == []


def test_descriptors_of_two_unrelated_snapshots_are_no_chain(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        save_machine(path, state())
    fds = [os.open(path, os.O_RDONLY) for path in paths]

    with pytest.raises(UsageError, match="one: these are not the files of its chain"):
        SnapshotFile.of_chain(list(zip(paths, fds, strict=True)))

    assert not any(Path(f"/proc/self/fd/{fd}").exists() for fd in fds)
