"""Commands for VMs while an emulated host does not answer: its sockets accept, and no more."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pyvmm.base.dirs import runtime_dir, try_lock
from pyvmm.cli import main
from pyvmm.control import client
from pyvmm.control.wire import Message
from pyvmm.errors import EXIT_HOST, EXIT_OK, EXIT_USAGE
from pyvmm.host import capture, connection
from pyvmm.host.wire import PORTS

HOST = "6.1-frozen"
HERE = {"ok": True, "name": "here", "state": "running", "pid": 7, "vcpus": 2,
        "memory_bytes": 64 << 20, "sve_vls": [128]}  # fmt: skip
ROW = ["here", "running", "7", "2", "64", "MiB", "128", "local"]
VERBS = ["pause", "resume", "stop", "stat --once", "balloon", "debug -d"]


@pytest.fixture(autouse=True)
def silent(own: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a host that listens on its ports and never accepts, with short timeouts."""
    monkeypatch.setattr(connection, "HELLO_S", 0.05)
    monkeypatch.setattr(capture, "PORT_TIMEOUT_S", 0.2)
    sockets = runtime_dir(HOST)
    with ExitStack() as undo:
        for number in range(1, PORTS + 1):
            listener = undo.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(sockets / f"p{number}"))
            listener.listen()
        alive = try_lock(sockets / "alive")
        assert alive is not None
        undo.callback(os.close, alive)
        facts = {"pid": os.getpid(), "start_id": "1", "qemu": "7.2", "settings": {"cpu": "max"}}
        (sockets / "about.json").write_text(json.dumps(facts))
        yield


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Let one VM run on this machine; return the requests that it gets."""
    asked: list[Message] = []

    def answer(question: Message) -> Message:
        if question["vm"] is None:
            return {"ok": True, "vms": [HERE]}
        asked.append(question["request"])
        return {"ok": True}

    monkeypatch.setattr(client, "answer", answer)
    return asked


def test_list_shows_the_other_vms_and_names_the_host(
    requests: list[Message], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list"]) == EXIT_HOST

    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()[1:]] == [ROW]
    assert err.startswith(f"pyvmm: {HOST}: the emulated host does not answer")


def test_list_names_the_host_in_json(
    requests: list[Message], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--json"]) == EXIT_HOST

    shown = json.loads(capsys.readouterr().out)
    assert [vm["name"] for vm in shown["vms"]] == ["here"]
    (entry,) = shown["hosts_not_answering"]
    assert set(entry) == {"host", "error", "hint"}
    assert entry["host"] == HOST
    assert "does not answer" in entry["error"]


def test_stop_of_all_stops_the_others_and_fails(
    requests: list[Message], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop", "-a"]) == EXIT_HOST

    err = capsys.readouterr().err
    assert requests == [{"do": "stop"}]
    assert "here: stopped" in err
    assert f"pyvmm: {HOST}: the emulated host does not answer" in err


@pytest.mark.parametrize("verb", VERBS)
def test_command_for_all_does_not_report_that_there_are_no_vms(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "-a"]) == EXIT_HOST

    err = capsys.readouterr().err
    assert "no VM is running" not in err
    assert HOST in err


def test_command_for_all_names_the_host_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "-a", "--json"]) == EXIT_HOST

    shown = json.loads(capsys.readouterr().out)
    assert shown["vms"] == []
    assert [entry["host"] for entry in shown["hosts_not_answering"]] == [HOST]


@pytest.mark.parametrize("arguments", [["stop", "-n", "mv1"], ["save", "mv1", "x"]])
def test_vm_that_may_be_in_the_host_is_not_reported_as_missing(
    arguments: list[str], requests: list[Message], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == EXIT_HOST

    *_, said, hint = capsys.readouterr().err.splitlines()
    assert said == f"pyvmm: no VM called mv1 was found, but not every host answered: {HOST}"
    assert hint == "  hint: running elsewhere: here"


def test_vm_of_another_place_is_found_without_the_host(requests: list[Message]) -> None:
    assert main(["stop", "-n", "here"]) == EXIT_OK

    assert requests == [{"do": "stop"}]


def test_full_name_asks_no_other_place(
    requests: list[Message], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop", "-n", "local/here"]) == EXIT_OK
    assert main(["stop", "-n", "local/mv1"]) == EXIT_USAGE

    assert HOST not in capsys.readouterr().err
