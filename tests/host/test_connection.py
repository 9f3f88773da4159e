"""Connecting to a session: free ports, sessions that are ending, hosts that have ended."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pyvmm.base.dirs import try_lock
from pyvmm.errors import HostError
from pyvmm.host import connection, qemu
from pyvmm.host.connection import Unreachable, connected, greet
from pyvmm.host.running import Running
from pyvmm.host.wire import FIRST_PORTS, HELLO, MAGIC, NONCE_SIZE, RESERVED, CommandRequest
from tests.host.conftest import python

REQUEST = CommandRequest(
    argv=["true"], cwd="/", uid=0, gid=0, groups=[], umask=0, environment={}, start_id="",
    now_ns=0, entropy="", idle_s=0,
)  # fmt: skip

Answer = Callable[[socket.socket], None]


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Make a host without ports, with short timeouts for its clients."""
    monkeypatch.setattr(connection, "HELLO_S", 0.1)
    monkeypatch.setattr(connection, "ANSWER_S", 0.2)
    monkeypatch.setattr(connection, "BUSY_S", 0.2)
    monkeypatch.setattr(connection, "PORT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connection, "PORTS", FIRST_PORTS)  # no more can be added
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


@contextmanager
def in_use(running: Running, ports: Iterable[int]) -> Iterator[list[int]]:
    """Take ports as other clients do."""
    with ExitStack() as undo:
        locks = [try_lock(running.path / f"p{number}.lock") for number in ports]
        taken = [lock for lock in locks if lock is not None]
        assert len(taken) == len(locks)
        for lock in taken:
            undo.callback(os.close, lock)
        yield taken


def test_connected_reports_how_many_commands_run_when_every_port_is_in_use(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PORT_TIMEOUT_S", 600)
    ordinary = set(range(1, FIRST_PORTS + 1)) - {*RESERVED}
    refusal = (
        rf"^{len(ordinary)} commands run in the emulated host {running.path.name}, and it takes no"
    )

    taken, expected = in_use(running, ordinary), pytest.raises(HostError, match=refusal)
    with taken, expected as caught, connected(running):
        pass

    assert not isinstance(caught.value, Unreachable)
    assert "`host.kernel`" in (caught.value.hint or "")


@pytest.mark.parametrize("number", RESERVED)
def test_connected_keeps_reserved_ports_for_control(
    number: int, running: Running, port: Callable[[int, Answer], None]
) -> None:
    port(number, hello)

    with in_use(running, set(range(1, FIRST_PORTS + 1)) - {number}):
        with connected(running, control=True) as made:
            assert made.getpeername() == str(running.path / f"p{number}")
        with pytest.raises(HostError, match="takes no more"), connected(running):
            pass


def test_connected_uses_any_port_for_control_when_the_reserved_ones_are_in_use(
    running: Running, port: Callable[[int, Answer], None]
) -> None:
    port(1, hello)

    with in_use(running, range(2, FIRST_PORTS + 1)), connected(running, control=True) as made:
        assert made.getpeername() == str(running.path / "p1")


def test_connected_adds_ports_when_those_there_are_in_use(
    running: Running, port: Callable[[int, Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[list[int]] = []

    def add_ports(sockets: Path, numbers: Iterable[int]) -> None:
        added.append([*numbers])
        for number in added[-1]:
            port(number, hello)

    monkeypatch.setattr(connection, "PORTS", FIRST_PORTS + 3)
    monkeypatch.setattr(connection, "ADDED", 2)
    monkeypatch.setattr(qemu, "add_ports", add_ports)
    with ExitStack() as undo:
        undo.enter_context(in_use(running, range(1, FIRST_PORTS + 1)))
        for number in range(FIRST_PORTS + 1, FIRST_PORTS + 4):
            made = undo.enter_context(connected(running))
            assert made.getpeername() == str(running.path / f"p{number}")
        assert running.ports == FIRST_PORTS + 3
        undo.enter_context(
            pytest.raises(HostError, match=f"^{FIRST_PORTS + 3 - len(RESERVED)} commands run")
        )
        undo.enter_context(connected(running))

    assert added == [[16, 17], [18]]


def test_connected_adds_no_port_for_control(running: Running) -> None:
    taken = in_use(running, range(1, FIRST_PORTS + 1))
    expected = pytest.raises(HostError, match=f"^{FIRST_PORTS} commands run")
    with taken, expected, connected(running, control=True):
        pass


@contextmanager
def unaccepted(running: Running) -> Iterator[None]:
    """Listen on every port, as a frozen QEMU does, with a full backlog."""
    with ExitStack() as undo:
        for number in range(1, FIRST_PORTS + 1):
            path = str(running.path / f"p{number}")
            listener, waiting = (undo.enter_context(socket.socket(socket.AF_UNIX)) for _ in "ab")
            listener.bind(path)
            listener.listen(0)
            waiting.connect(path)
        yield


@pytest.mark.parametrize("control", [False, True])
def test_connected_reports_a_host_that_accepts_no_connection(
    control: bool, running: Running
) -> None:
    expected = pytest.raises(HostError, match="does not answer")
    with unaccepted(running), expected as caught, connected(running, control=control):
        pass

    assert not isinstance(caught.value, Unreachable)


def test_connected_reports_at_once_that_the_hosts_process_is_stopped(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PORT_TIMEOUT_S", 600)
    with python("import time; time.sleep(600)") as process, unaccepted(running):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        frozen = Running(running.path, "start", process.pid, {})

        refusal = f"does not answer: its process {process.pid} is stopped"
        with pytest.raises(HostError, match=refusal) as caught, connected(frozen):
            pass

        assert f"kill -CONT {process.pid}" in (caught.value.hint or "")
        monkeypatch.setattr(connection, "PORTS", FIRST_PORTS + 1)  # one could be added
        taken = in_use(running, range(1, FIRST_PORTS + 1))
        with taken, pytest.raises(HostError, match=refusal), connected(frozen):
            pass
        process.kill()


def test_connected_waits_for_a_free_port(
    running: Running, port: Callable[[int, Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_S", 20)
    monkeypatch.setattr(connection, "PORT_TIMEOUT_S", 20)
    port(1, hello)
    with in_use(running, [1]) as locks, in_use(running, range(2, FIRST_PORTS + 1)):
        timer = threading.Timer(0.2, fcntl.flock, (locks[0], fcntl.LOCK_UN))
        timer.start()

        with connected(running) as made:
            assert made.getpeername() == str(running.path / "p1")

        timer.join()


def test_connected_reports_a_silent_host_with_its_last_output(
    running: Running, port: Callable[[int, Answer], None]
) -> None:
    (running.path / "console.log").write_text("Kernel panic - not syncing\n")
    for number in range(1, FIRST_PORTS + 1):
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
