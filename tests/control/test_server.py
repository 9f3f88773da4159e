"""The VM's end of a control socket: no client can harm it."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvmm.base.loop import Loop
from pyvmm.control import client, server
from pyvmm.control.server import CLIENTS, Server
from pyvmm.control.sockets import Claim
from pyvmm.control.wire import MAX_REQUEST, Message
from pyvmm.errors import HostError, UsageError
from tests.host.conftest import wait_for

pytestmark = pytest.mark.usefixtures("own")


def refuse(request: Message) -> Message:
    raise UsageError("no such thing", hint="try another")


def fail(request: Message) -> Message:
    raise ZeroDivisionError("a bug")


HANDLERS: dict[str, Callable[[Message], Message]] = {
    "echo": lambda request: {"said": request.get("say")},
    "large": lambda request: {"data": "x" * request["size"]},
    "refuse": refuse,
    "fail": fail,
}


@pytest.fixture
def path() -> Iterator[Path]:
    """Serve a VM's socket."""
    with Claim("it") as claim, Loop() as loop:
        serving = Server(loop, claim, HANDLERS)
        thread = threading.Thread(target=loop.run)
        thread.start()
        yield claim.path
        loop.stop()
        thread.join()
        serving.close()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(120)
    client.connect(connection, path)
    return connection


def replies(connection: socket.socket) -> list[Any]:
    """Read until the other end closes."""
    data = b""
    while more := connection.recv(1 << 16):
        data += more
    return [json.loads(line) for line in data.splitlines()]


def test_request_gets_the_handlers_reply(path: Path) -> None:
    reply = client.ask(path, {"do": "echo", "say": "äöü"})

    assert reply == {"ok": True, "said": "äöü"}


def test_connection_can_send_several_requests_at_once_and_in_pieces(path: Path) -> None:
    lines = b"".join(b'{"do": "echo", "say": %d}\n' % n for n in range(50))
    with connect(path) as connection:
        connection.sendall(lines[:100])
        connection.sendall(lines[100:])
        connection.shutdown(socket.SHUT_WR)

        got = replies(connection)

    assert [reply["said"] for reply in got] == list(range(50))


def test_error_of_a_handler_is_the_reply(path: Path) -> None:
    reply = client.ask(path, {"do": "refuse"})

    assert reply == {
        "ok": False, "error": "no such thing", "hint": "try another", "exit_code": 2,
    }  # fmt: skip


def test_bug_in_a_handler_is_reported_to_the_client(path: Path) -> None:
    reply = client.ask(path, {"do": "fail"})

    assert reply["ok"] is False
    assert "ZeroDivisionError: a bug" in reply["error"]
    assert client.ask(path, {"do": "echo"})["ok"]


@pytest.mark.parametrize("verb", ["nothing", 3, None, [], {"a": 1}])
def test_unknown_request_gets_the_list_of_requests(verb: object, path: Path) -> None:
    reply = client.ask(path, {"do": verb})

    assert reply["ok"] is False
    assert "echo" in reply["hint"]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\n", b"rubbish\n", b"[]\n", b'"do"\n', b"\xff\xfe\n", b"{\n", b"[" * 60_000 + b"\n",
        b"GET / HTTP/1.1\r\n\r\n", b"x" * (MAX_REQUEST + 1), b"1" * 5000 + b"\n",
    ],
)  # fmt: skip
def test_malformed_request_gets_an_error_and_disconnects(rubbish: bytes, path: Path) -> None:
    with connect(path) as connection:
        connection.sendall(rubbish)

        (reply,) = replies(connection)

    assert reply["ok"] is False
    assert "malformed request" in reply["error"]
    assert client.ask(path, {"do": "echo"})["ok"]


def test_large_reply_arrives_at_a_client_that_reads_slowly(path: Path) -> None:
    size = 8 << 20
    with connect(path) as connection:
        connection.sendall(b'{"do": "large", "size": %d}\n' % size)
        other = client.ask(path, {"do": "echo"})
        connection.shutdown(socket.SHUT_WR)

        (reply,) = replies(connection)

    assert other["ok"]
    assert reply["data"] == "x" * size


@pytest.mark.parametrize("said", [b"", b'{"do": "ec', b'{"do": "large", "size": 9000000}\n'])
def test_hanging_client_is_disconnected(
    said: bytes, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TIMEOUT_S", 1.0)  # of the silent client
    with connect(path) as connection:
        connection.sendall(said)
        other = client.ask(path, {"do": "echo"})

        while (
            connection.recv(1, socket.MSG_PEEK) and len(said) < 12
        ):  # until the server disconnects
            pass

    assert other["ok"]
    assert client.ask(path, {"do": "echo"})["ok"]


def test_reply_is_sent_when_the_loop_ends_with_the_request() -> None:
    """A guest's reset ends the loop in the round of a client's "stop"."""
    with Claim("it") as claim, Loop() as loop, socket.socket(socket.AF_UNIX) as connection:

        def stop(request: Message) -> Message:
            loop.stop()
            return {"said": "stopped"}

        serving = Server(loop, claim, {"stop": stop})
        connection.connect(str(claim.path))
        connection.sendall(b'{"do": "stop"}\n')
        loop.run()
        serving.close()

        (reply,) = replies(connection)

    assert reply == {"ok": True, "said": "stopped"}


def test_clients_beyond_the_limit_are_refused_and_the_others_served(path: Path) -> None:
    with ExitStack() as held:
        for _ in range(CLIENTS):
            connection = held.enter_context(connect(path))
            connection.sendall(b'{"do": "echo"}\n')
            assert connection.recv(100)

        with connect(path) as surplus:
            (reply,) = replies(surplus)

    assert "too many clients" in reply["error"]
    wait_for(lambda: client.ask(path, {"do": "echo"})["ok"])


def test_client_that_leaves_before_its_reply_harms_no_other(path: Path) -> None:
    for _ in range(20):
        with connect(path) as connection:
            connection.sendall(b'{"do": "large", "size": 9000000}\n')

    assert client.ask(path, {"do": "echo"})["ok"]


def test_silent_vm_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.2)
    with Claim("it") as claim, pytest.raises(HostError, match="VM it does not answer"):
        client.ask(claim.path, {"do": "echo"})


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\n\r\n", b"[]\n", b"{}\n", b'{"ok": 1}\n'])
def test_foreign_server_is_reported(said: bytes) -> None:
    with Claim("it") as claim:

        def serve() -> None:
            claim.listener.setblocking(True)
            connection, _ = claim.listener.accept()
            connection.recv(100)
            connection.sendall(said)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(HostError, match="not the socket of a pyvmm VM"):
            client.ask(claim.path, {"do": "echo"})
        thread.join()


def test_vm_that_ends_before_its_reply_is_gone() -> None:
    with Claim("it") as claim:
        claim.listener.close()

        with pytest.raises(client.Gone):
            client.ask(claim.path, {"do": "echo"})


def test_stop_succeeds_when_the_vm_has_just_ended() -> None:
    with Claim("it") as claim:
        claim.listener.close()

        assert client.ask(claim.path, {"do": "stop"}) == {"ok": True}


def test_question_without_a_name_lists_every_vm(path: Path) -> None:
    reply = client.answer({"vm": None})

    (vm,) = reply["vms"]
    assert vm["name"] == "it"
    assert vm["state"] == "not answering"  # these handlers have no "info"


def test_question_about_an_unknown_vm_is_an_error() -> None:
    reply = client.answer({"vm": "nobody", "request": {"do": "info"}})

    assert reply["ok"] is False
    assert "nobody" in reply["error"]


def test_silent_vms_are_asked_concurrently(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3)

    def silent(path: Path, request: Message) -> Message:
        together.wait(120)  # a broken barrier if they are asked in sequence
        raise HostError(f"the VM {path.stem} does not answer")

    monkeypatch.setattr(client, "ask", silent)
    with Claim("a"), Claim("b"), Claim("c"):
        reply = client.answer({"vm": None})

    assert [vm["name"] for vm in reply["vms"]] == ["a", "b", "c"]
    assert {vm["state"] for vm in reply["vms"]} == {"not answering"}


def test_client_is_served_when_a_descriptor_is_free(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([OSError(errno.EMFILE, "Too many open files")])
    accept = socket.socket.accept

    def refuse_once(listener: socket.socket) -> Any:
        for error in refusals:
            raise error
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", refuse_once)

    assert client.ask(path, {"do": "echo"})["ok"]


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"name": "it", "sve_vls": 7},
        {"name": 5, "pid": 1, "state": "", "image": "", "vcpus": 1, "memory_bytes": 1,
         "sve_vls": []},
        {"name": "other", "pid": 1, "state": "", "image": "", "vcpus": 1, "memory_bytes": 1,
         "sve_vls": []},
    ],
)  # fmt: skip
def test_foreign_info_is_listed_as_not_answering(info: Message) -> None:
    with Claim("it") as claim, Loop() as loop:
        serving = Server(loop, claim, {"info": lambda request: info})
        thread = threading.Thread(target=loop.run)
        thread.start()
        (vm,) = client.answer({"vm": None})["vms"]
        loop.stop()
        thread.join()
        serving.close()

    assert vm["ok"] is False
    assert (vm["name"], vm["state"]) == ("it", "not answering")
    assert "not the socket of a pyvmm VM" in vm["error"]
