"""Listeners for debuggers, and the bytes that are carried between them and VMs."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from pyvmm.base.loop import Loop
from pyvmm.control import debugging
from pyvmm.control.debugging import DebugListener, carry, dial
from pyvmm.errors import HostError, UsageError


def connected(listener: DebugListener) -> socket.socket:
    family = listener.socket.family
    address = listener.socket.getsockname()
    connection = socket.socket(family)
    connection.settimeout(60)
    connection.connect(address)
    return connection


def test_listener_at_a_path_is_for_this_user_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gdb"

    with DebugListener(str(path)) as listener:
        assert listener.address == str(path)
        assert path.stat().st_mode & 0o777 == 0o600
        with connected(listener), listener.accept() or pytest.fail("not accepted") as served:
            assert served.family == socket.AF_UNIX

    assert not path.exists()


def test_listener_replaces_a_dead_socket_but_no_file(tmp_path: Path) -> None:
    path, file = tmp_path / "gdb", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    file.touch()

    with DebugListener(str(path)), pytest.raises(HostError, match="is in the way"):
        DebugListener(str(file))


def test_listener_at_a_port_is_on_the_loopback() -> None:
    with DebugListener("0") as listener:
        host, _, port = listener.address.partition(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port)), timeout=60):
            pass


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("65536", "a port is 0 to 65535"),
        ("/" + "a" * 200, "too long"),
        ("/none/gdb", "cannot listen"),
    ],
)
def test_impossible_place_is_refused(place: str, words: str) -> None:
    with pytest.raises((UsageError, HostError), match=words):
        DebugListener(place)


def test_port_in_use_is_refused() -> None:
    with DebugListener("0") as first, pytest.raises(HostError, match="in use"):
        DebugListener(first.address.rpartition(":")[2])


def test_listener_takes_a_thousand_connections(tmp_path: Path) -> None:
    served = 0

    def serve(connection: socket.socket) -> None:
        nonlocal served
        served += 1
        connection.close()
        if served == 1000:
            loop.stop()

    with DebugListener(str(tmp_path / "gdb")) as listener, Loop() as loop:
        listener.serve(loop, serve)

        def knock() -> None:
            for _ in range(1000):
                with connected(listener) as connection:
                    connection.recv(1)

        thread = threading.Thread(target=knock)
        thread.start()
        loop.run()
        thread.join()

    assert served == 1000


def test_bytes_are_carried_both_ways_until_one_end_closes() -> None:
    near, end = socket.socketpair()
    vm, there = socket.socketpair()
    with near, end, vm, there:
        thread = threading.Thread(target=carry, args=(there, end.fileno(), end.fileno()))
        thread.start()
        near.settimeout(60)
        vm.settimeout(60)
        data = os.urandom(1 << 20)
        sender = threading.Thread(target=near.sendall, args=(data,))
        sender.start()
        got = b""
        while len(got) < len(data):
            got += vm.recv(1 << 16)
        vm.sendall(b"$OK#9a")
        assert (got, near.recv(100)) == (data, b"$OK#9a")
        vm.shutdown(socket.SHUT_RDWR)
        thread.join()
        sender.join()


def test_dial_of_a_vm_that_does_not_run_is_refused() -> None:
    with pytest.raises(UsageError, match="no VM called nobody"):
        dial("nobody")


def test_dial_of_a_listener_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"pyvmm-test-{os.getpid()}"
    found: list[socket.socket] = []
    thread = threading.Thread(target=lambda: found.append(dial(f"@{name}")))
    thread.start()
    with DebugListener(f"@{name}") as listener:
        listener.socket.setblocking(True)
        accepted = listener.accept()
        thread.join()
    assert accepted is not None
    accepted.close()
    found[0].close()

    monkeypatch.setattr(debugging, "START_S", 0.2)
    with pytest.raises(HostError, match="accepts no debugger"):
        dial(f"@{name}")
