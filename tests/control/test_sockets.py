"""Names of VMs: taken once, and released however a VM ends; no other file is removed."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.base.dirs import runtime_dir
from pyvmm.control.sockets import Claim, running
from pyvmm.errors import HostError, UsageError

pytestmark = pytest.mark.usefixtures("own")

OWNER = """
import sys
from pyvmm.control.sockets import Claim
claim = Claim(sys.argv[1])
print("claimed", flush=True)
sys.stdin.read()
"""


def start_owner(name: str) -> subprocess.Popen[str]:
    """Start a process that has the name until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def names() -> list[str]:
    return [path.stem for path in running()]


def test_claim_makes_a_private_socket() -> None:
    with Claim("it") as claim:
        status = claim.path.stat()

    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(claim.path.parent.stat().st_mode) == 0o700


def test_socket_is_found_only_once_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    class Spied(socket.socket):
        def listen(self, backlog: int = 0, /) -> None:
            found.append((runtime_dir("vms") / "it.sock").exists())
            super().listen(backlog)

    monkeypatch.setattr("pyvmm.control.sockets.socket.socket", Spied)
    with Claim("it") as claim:
        assert claim.path.exists()

    assert found == [False]


def test_claim_leaves_nothing_behind() -> None:
    with Claim("it") as claim:
        assert names() == ["it"]

    assert list(claim.path.parent.iterdir()) == []
    assert names() == []


def test_name_of_a_running_vm_is_refused() -> None:
    with start_owner("it") as owner:
        with pytest.raises(UsageError, match="it is running already"):
            Claim("it")
        owner.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dead_vm_is_not_listed_and_its_name_is_free(number: signal.Signals) -> None:
    with start_owner("it") as owner:
        owner.send_signal(number)
        owner.wait()
        left = runtime_dir() / "vms/it.sock"
        assert left.exists()

        seen = names()

        assert seen == []
        assert not left.exists()
        Claim("it").close()


def test_stale_socket_is_replaced_without_being_listed_first() -> None:
    with start_owner("it") as owner:
        owner.kill()
        owner.wait()

    with Claim("it"):
        assert names() == ["it"]


def test_other_file_at_the_socket_path_is_kept_and_named() -> None:
    Claim("first").close()
    path = runtime_dir() / "vms/it.sock"
    path.write_text("another file")

    with pytest.raises(HostError, match=r"it\.sock is in the way"):
        Claim("it")
    listed = names()

    assert path.read_text() == "another file"
    assert listed == []


def test_name_too_long_for_a_socket_is_refused_with_the_limit() -> None:
    Claim("x").close()
    room = 107 - len(os.fsencode(runtime_dir() / "vms/.sock"))

    Claim("x" * room).close()

    with pytest.raises(UsageError, match=f"{room} bytes fit"):
        Claim("x" * (room + 1))


def test_socket_accepts_connections_once_the_name_is_taken() -> None:
    with Claim("it") as claim, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(claim.path))


def test_concurrent_claims_have_one_winner(tmp_path: Path) -> None:
    race = [
        subprocess.Popen(
            [sys.executable, "-c", OWNER, "it"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    printed = []
    for process in race:
        assert process.stdout is not None
        printed.append(process.stdout.readline())
    for process in race:
        process.communicate()

    assert printed.count("claimed\n") == 1


def test_unusable_lock_is_an_error() -> None:
    (runtime_dir("vms") / "it.lock").mkdir()

    with pytest.raises(HostError, match=r"cannot lock .*it\.lock: Is a directory"):
        Claim("it")


def test_directory_at_the_lock_path_is_not_a_vm() -> None:
    with Claim("it"):
        place = runtime_dir() / "vms"
        (place / "odd.lock").mkdir()
        (place / "odd.sock").write_text("")

        assert names() == ["it"]
        (place / "odd.lock").rmdir()
