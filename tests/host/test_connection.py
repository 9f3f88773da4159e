"""Connecting to a session: free ports, sessions that are ending, hosts that have ended."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.base.dirs import try_lock
from pyvmm.errors import HostError
from pyvmm.host import connection
from pyvmm.host.connection import Unreachable, connected, greet
from pyvmm.host.running import Running
from pyvmm.host.wire import HELLO, MAGIC, NONCE_SIZE, PORTS, Request

REQUEST = Request(
    argv=["true"], cwd="/", uid=0, gid=0, groups=[], umask=0, environment={}, start_id="",
    now_ns=0, entropy="", idle_s=0,
)  # fmt: skip

Answer = Callable[[socket.socket], None]


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Make a host without ports, with short timeouts for its clients."""
    monkeypatch.setattr(connection, "HELLO_S", 0.1)
    monkeypatch.setattr(connection, "ANSWER_S", 0.2)
    monkeypatch.setattr(connection, "PORT_TIMEOUT_S", 0.5)
    path = Path(tempfile.mkdtemp(prefix="pyvmm-test-"))
    yield Running(path, "start", 77, {})
    shutil.rmtree(path)


@pytest.fixture
def port(running: Running) -> Iterator[Callable[[int, Answer], None]]:
    """Return a function that serves a port."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket, answer: Answer) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                answer(client)

    def add(number: int, answer: Answer) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(running.path / f"p{number}"))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener, answer))
        thread.start()
        listeners.append(listener)
        threads.append(thread)

    yield add
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def hello(client: socket.socket) -> None:
    client.sendall(b"stale" + HELLO)
    client.recv(1)


def silence(client: socket.socket) -> None:
    client.recv(1)


def test_connected_uses_the_first_free_port_and_releases_it(
    running: Running, port: Callable[[int, Answer], None]
) -> None:
    port(1, hello)

    for _ in range(2):
        with connected(running) as made:
            assert made.getpeername() == str(running.path / "p1")
            assert try_lock(running.path / "p1.lock") is None


def test_connected_skips_a_port_in_use(
    running: Running, port: Callable[[int, Answer], None]
) -> None:
    port(2, hello)
    lock = try_lock(running.path / "p1.lock")
    assert lock is not None

    with connected(running) as made:
        assert made.getpeername() == str(running.path / "p2")

    os.close(lock)


def test_connected_skips_a_port_whose_session_is_ending(
    running: Running, port: Callable[[int, Answer], None]
) -> None:
    port(1, silence)
    port(2, hello)

    with connected(running) as made:
        assert made.getpeername() == str(running.path / "p2")
        lock = try_lock(running.path / "p1.lock")
        assert lock is not None
        os.close(lock)


def test_connected_reports_that_every_port_is_in_use(running: Running) -> None:
    locks = [try_lock(running.path / f"p{number}.lock") for number in range(1, PORTS + 1)]

    with pytest.raises(HostError, match=f"all {PORTS} sessions .* are in use"), connected(running):
        pass

    for lock in locks:
        assert lock is not None
        os.close(lock)


def test_connected_waits_for_a_free_port(
    running: Running, port: Callable[[int, Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PORT_TIMEOUT_S", 20)
    port(1, hello)
    locks = [try_lock(running.path / f"p{number}.lock") for number in range(1, PORTS + 1)]
    timer = threading.Timer(0.2, lambda: os.close(locks[0] or 0))
    timer.start()

    with connected(running) as made:
        assert made.getpeername() == str(running.path / "p1")

    timer.join()
    for lock in locks[1:]:
        assert lock is not None
        os.close(lock)


def test_connected_reports_a_silent_host_with_its_last_output(
    running: Running, port: Callable[[int, Answer], None]
) -> None:
    (running.path / "console.log").write_text("Kernel panic - not syncing\n")
    for number in range(1, PORTS + 1):
        port(number, silence)

    refusal = pytest.raises(HostError, match=r"does not answer \(Kernel panic")
    with refusal as caught, connected(running):
        pass

    assert not isinstance(caught.value, Unreachable)


def test_connected_is_unreachable_when_the_directory_is_gone(running: Running) -> None:
    gone = Running(running.path / "gone", "start", 77, {})

    with pytest.raises(Unreachable, match="process 77"), connected(gone):
        pass


def test_connected_is_unreachable_when_no_process_listens(
    running: Running,
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(running.path / "p1"))

    with pytest.raises(Unreachable), connected(running):
        pass


@pytest.mark.parametrize("last", [b"", HELLO[:-1]])
def test_connected_is_unreachable_when_the_host_ends_before_its_hello(
    last: bytes, running: Running, port: Callable[[int, Answer], None]
) -> None:
    port(1, lambda client: client.sendall(last))

    with pytest.raises(Unreachable), connected(running):
        pass


def greeting(answer: Callable[[socket.socket, bytes], None]) -> Answer:
    """Serve a session that sends hello, and handles the nonce with a function."""

    def serve(client: socket.socket) -> None:
        client.sendall(HELLO)
        data = client.recv(65536)
        assert data.startswith(MAGIC)
        answer(client, data[len(MAGIC) : len(MAGIC) + NONCE_SIZE])

    return serve


def test_greet_finds_the_answer_behind_stale_bytes(
    running: Running, port: Callable[[int, Answer], None]
) -> None:
    stale = b"stale" + MAGIC + bytes(NONCE_SIZE) + MAGIC[:-1]
    port(1, greeting(lambda client, nonce: client.sendall(stale + MAGIC + nonce + b"rest")))

    with connected(running) as made:
        assert greet(running, made, REQUEST) == b"rest"
        assert made.gettimeout() is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda client, nonce: None, "ended during the command"),
        (lambda client, nonce: client.sendall(MAGIC), "ended during the command"),
        (lambda client, nonce: client.recv(1), "does not answer"),
    ],
    ids=["ends", "ends half way", "hangs"],
)
def test_greet_never_allows_a_second_host_once_the_request_is_sent(
    answer: Callable[[socket.socket, bytes], None],
    words: str,
    running: Running,
    port: Callable[[int, Answer], None],
) -> None:
    port(1, greeting(answer))

    with connected(running) as made, pytest.raises(HostError, match=words) as caught:
        greet(running, made, REQUEST)

    assert not isinstance(caught.value, Unreachable)
