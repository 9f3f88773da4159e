"""A confined program in QEMU's place, the files that commands share with it, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host import grant
from pyvmm.host.confined import keeper, launch
from pyvmm.host.grant import granted
from pyvmm.host.parts.tools import Tool
from pyvmm.host.running import UNCONFINED, Running
from pyvmm.host.share import ALL, NO_TREE, VARIABLE, WHOLE, Needs
from tests.host.confined.conftest import OTHER_USER, PR_SET_DUMPABLE
from tests.host.conftest import wait_for

SYSTEM = [path for path in map(Path, ("/bin", "/lib", "/lib64")) if path.exists()]
# What a process sees; it then waits, as QEMU does.
LOOK = """
exec >$1/seen
cat "$2" 2>/dev/null
ls /
cat /proc/self/status
ls /sys/class/net 2>/dev/null
echo end
exec sleep 600
"""

pytestmark = pytest.mark.usefixtures("confinable")


class Host(Running):
    """A running program in QEMU's place."""

    @property
    def share(self) -> Path:
        """The directory of trees, as the program sees it."""
        return Path(f"/proc/{self.pid}/root{self.path}") / keeper.SHARE

    def seen(self) -> str:
        """Return what the program saw."""
        wait_for(lambda: "end\n" in self._report(), "the program's report")
        return self._report()

    def _report(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.path / "seen").read_text()
        return ""


@pytest.fixture
def secret(place: Path) -> Path:
    path = place / "secret"
    path.write_text("a secret\n")
    return path


@pytest.fixture
def host(place: Path, secret: Path) -> Iterator[Host]:
    """Start the program confined."""
    sockets = place / "host"
    sockets.mkdir()
    alive = os.open(sockets / "alive", os.O_RDWR | os.O_CREAT)
    tool = Tool(("/bin/sh", "-c", LOOK, "sh"), root=Path("/usr"))
    started = launch.launch(
        tool, lambda shared: [str(shared.parent), str(secret)], sockets, alive, [], SYSTEM
    )
    os.close(alive)
    assert started.refusal is None
    yield Host(sockets, "id", started.pid, {UNCONFINED: None})
    with contextlib.suppress(ProcessLookupError):
        os.kill(started.pid, signal.SIGKILL)
    wait_for(lambda: not grant.listener(sockets).exists(), "the keeper's end")


def status_of(report: str, field: str) -> str:
    (line,) = (line for line in report.splitlines() if line.startswith(f"{field}:"))
    return line.partition(":")[2].strip()


def test_confined_program_sees_its_own_files_and_no_others(host: Host, secret: Path) -> None:
    seen = host.seen()

    names = seen.split("Name:")[0].split()
    assert "secret" not in names
    assert set(names) == {
        "dev", "proc", "tmp", "usr", *(path.name for path in SYSTEM), host.path.parts[1],
    }  # fmt: skip
    assert (host.path / "pid").read_text() == f"{host.pid}\n"


def test_confined_program_has_no_capability_that_leaves_its_root(host: Host) -> None:
    capabilities = int(status_of(host.seen(), "CapEff"), 16)

    allowed = sum(1 << number for number in keeper.CAPABILITIES)
    assert capabilities & ~allowed == 0
    assert int(status_of(host.seen(), "CapBnd"), 16) & ~allowed == 0 or os.geteuid()


def test_confined_program_has_no_network(host: Host) -> None:
    host.seen()

    theirs = Path(f"/proc/{host.pid}/net/dev").read_text()

    assert [line.split(":")[0].strip() for line in theirs.splitlines()[2:]] == ["lo"]
    assert Path(f"/proc/{host.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def test_confined_program_does_not_see_the_keepers_socket(host: Host) -> None:
    assert grant.listener(host.path).exists()
    assert not Path(f"/proc/{host.pid}/root{grant.listener(host.path)}").exists()


def test_granted_files_are_seen_until_the_command_ends(host: Host, secret: Path) -> None:
    with granted(host, Needs(reads=(secret,))) as given:
        assert given.tree is not None
        at = host.share / given.tree / secret.relative_to("/")
        assert at.read_text() == "a secret\n"

    assert list(host.share.iterdir()) == []


def test_trees_of_two_commands_are_separate(host: Host, secret: Path, place: Path) -> None:
    (place / "other").touch()

    with (
        granted(host, Needs(reads=(secret,))) as first,
        granted(host, Needs(reads=(place / "other",))) as second,
    ):
        seen = [
            sorted(
                path.name
                for path in (host.share / str(one.tree) / place.relative_to("/")).iterdir()
            )
            for one in (first, second)
        ]

    assert seen == [["secret"], ["other"]]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a host that starts later keep a killed command's tree for a second."""
    monkeypatch.setattr(keeper, "LINGER_S", 1.0)


@pytest.mark.usefixtures("brief")
def test_tree_of_a_killed_command_is_removed_after_some_time(host: Host, secret: Path) -> None:
    request = {"reads": [str(secret)], "updates": [], "creates": [], "everything": False,
               "cwd": "/"}  # fmt: skip
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(grant.listener(host.path)))
        connection.sendall(json.dumps(request).encode() + b"\n")
        connection.recv(1000)
        assert len(list(host.share.iterdir())) == 1
        killed = time.monotonic()

    wait_for(lambda: list(host.share.iterdir()) == [], "the tree's end")

    assert time.monotonic() - killed >= 1.0  # the command may have been saving its guest


def test_command_without_needs_gets_no_tree(host: Host) -> None:
    with granted(host, None) as given:
        assert given.tree == NO_TREE
        assert list(host.share.iterdir()) == []


@pytest.mark.parametrize("way", ["needs", "variable"])
def test_command_may_see_everything(
    way: str, host: Host, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "variable":
        monkeypatch.setenv(VARIABLE, "all")

    with granted(host, ALL if way == "needs" else Needs()) as given:
        assert given.tree is not None
        assert given.tree.startswith(WHOLE)
        assert (host.share / given.tree / secret.relative_to("/")).exists()

    assert list(host.share.iterdir()) == []


def test_program_ends_with_its_keeper(host: Host) -> None:
    parent = int(status_of(host.seen(), "PPid"))

    os.kill(parent, signal.SIGKILL)

    wait_for(lambda: not Path(f"/proc/{host.pid}").exists(), "the program's end")
    grant.listener(host.path).unlink()  # a killed keeper leaves it


def test_command_says_that_the_keeper_does_not_answer(host: Host) -> None:
    grant.listener(host.path).unlink()

    with pytest.raises(HostError, match=r"has ended|does not answer"), granted(host, Needs()):
        pass


def test_program_that_cannot_be_executed_is_a_refusal_and_runs_unconfined(place: Path) -> None:
    sockets = place / "host"
    sockets.mkdir()
    alive = os.open(sockets / "alive", os.O_RDWR | os.O_CREAT)
    shared: list[Path] = []

    def arguments(path: Path) -> list[str]:
        shared.append(path)
        return ["pass"]

    tool = Tool((sys.executable, "-c"), root=place)  # which lacks the interpreter

    started = launch.launch(tool, arguments, sockets, alive, [])

    os.close(alive)
    assert started.refusal == "No such file or directory"
    assert shared == [sockets / keeper.SHARE, Path("/")]
    wait_for(lambda: not Path(f"/proc/{started.pid}/exe").exists(), "its end")


def test_qemu_of_the_users_own_runs_unconfined(place: Path) -> None:
    sockets = place / "host"
    sockets.mkdir()
    alive = os.open(sockets / "alive", os.O_RDWR | os.O_CREAT)

    started = launch.launch(
        Tool((sys.executable, "-c")), lambda shared: [f"assert {str(shared)!r} == '/'"], sockets,
        alive, [],
    )  # fmt: skip

    os.close(alive)
    assert "own" in (started.refusal or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_user_without_privileges_confines_a_program(place: Path, secret: Path) -> None:
    sockets = place / "host"
    sockets.mkdir()
    os.chown(sockets, OTHER_USER, OTHER_USER)
    os.chown(secret, OTHER_USER, OTHER_USER)
    listener = str(grant.listener(sockets))
    order = keeper.Order(
        command=["/bin/sh", "-c", LOOK, "sh", str(sockets), str(secret)], sockets=str(sockets),
        listen=listener, alive=os.open("/dev/null", os.O_RDONLY),
        reads=[str(path) for path in (Path("/usr"), *SYSTEM)], writes=[],
    )  # fmt: skip
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            os.dup2(writer, 1)
            os.setgroups([])
            os.setresgid(OTHER_USER, OTHER_USER, OTHER_USER)
            os.setresuid(OTHER_USER, OTHER_USER, OTHER_USER)
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.argv = ["keeper", json.dumps(vars(order))]
            keeper.main()
        os._exit(0)
    os.close(order.alive)
    os.close(writer)
    with os.fdopen(reader) as report:
        pid = json.loads(report.readline())["pid"]
    host = Host(sockets, "id", pid, {UNCONFINED: None})

    seen = host.seen()
    with granted(host, Needs(reads=(secret,))) as given:
        shared = (host.share / str(given.tree) / secret.relative_to("/")).read_text()

    os.kill(pid, signal.SIGKILL)
    os.waitpid(process, 0)
    assert "a secret" not in seen
    assert int(status_of(seen, "CapEff"), 16) == 0
    assert shared == "a secret\n"
