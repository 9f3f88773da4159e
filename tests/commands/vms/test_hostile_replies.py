"""Replies that no VM of pyvmm sends: after an escape, a guest chooses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyvmm.commands.vms import _running
from pyvmm.commands.vms._guestmemory import ask_and_wait, missing_of_balloon
from pyvmm.commands.vms._running import Found, Vm, VmHost, ask_all, report
from pyvmm.commands.vms.stat import lines
from pyvmm.control.wire import INFO, WireError, is_info, pack, parse_reply
from pyvmm.errors import EXIT_HOST, HostError
from pyvmm.host.running import Running

GOOD = {"name": "it", "pid": 1, "state": "running", "image": "i", "vcpus": 1, "memory_bytes": 1,
        "sve_vls": []}  # fmt: skip


class Fake(VmHost):
    """A place whose VMs all send the same reply."""

    reply: Any = None

    def ask(self, questions: Any, needs: object = None) -> Any:
        return [self.reply for _ in questions]


@pytest.mark.parametrize(
    "reply",
    [{"ok": False, "error": 1}, {"ok": False, "hint": []}, {"ok": False, "exit_code": "3"},
     {"ok": False, "exit_code": 0}, {"ok": False, "exit_code": 4}, {"ok": 1}, {}],
)  # fmt: skip
def test_parse_reply_refuses_fields_of_another_type(reply: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        parse_reply(json.dumps(reply).encode())


@pytest.mark.parametrize("field", [name for name, kind in INFO.items() if kind is int])
@pytest.mark.parametrize("value", [-1, 1 << 64, 10**400, True, 1.0])
def test_info_with_an_impossible_number_is_refused(field: str, value: Any) -> None:
    assert is_info(GOOD, "it")
    assert not is_info({**GOOD, field: value}, "it")


@pytest.mark.parametrize(
    "reply", [{}, {"memory_resident_bytes": "x"}, {"memory_resident_bytes": 10**400}]
)
def test_report_of_a_malformed_reply_fails_and_shows_the_others(
    reply: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(one: dict[str, Any]) -> list[str]:
        return ["fine"] if one["name"] == "good" else list(lines(one, None))

    replies = [{"ok": True, "name": "bad", **reply}, {"ok": True, "name": "good"}]

    code = report(Found([]), replies, False, shown)

    out, err = capsys.readouterr()
    assert (code, out) == (EXIT_HOST, "fine\n")
    assert "bad: the VM's reply is malformed" in err
    assert "bug in pyvmm" not in err


def test_reply_cannot_change_the_name_and_the_place_of_its_vm() -> None:
    place = Fake(None, reply={"ok": True, "name": "another", "host": "elsewhere"})

    (reply,) = ask_all([Vm(place, {"name": "it"})], {"do": "info"})

    assert (reply["name"], reply["host"]) == ("it", None)


def test_wait_for_a_balloon_refuses_a_malformed_reply() -> None:
    vm = Vm(Fake(None, reply={"ok": True, "balloon": 3}), {"name": "it"})

    with pytest.raises(HostError, match="it: the VM's reply is malformed"):
        ask_and_wait(vm, {"do": "balloon"}, missing_of_balloon, 0.0)


@pytest.mark.parametrize(
    "answers",
    [b"", b"{}\n", b"[]\n", b"[" * 5000 + b"\n", pack({"ok": True}) * 2, b"\xff\n"],
)
def test_malformed_answer_of_an_emulated_host_is_an_error(
    answers: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_running, "capture", lambda *_, **__: answers)
    place = VmHost(Running(tmp_path / "6.1", "", 1, {}))

    with pytest.raises(HostError, match="the emulated host"):
        place.ask([{"vm": None}])


@pytest.mark.parametrize(
    "vms", [None, {}, [1], [{"name": 1}], [{"ok": True, "name": "x"}], [{"ok": 1, "name": "x"}]]
)
def test_malformed_list_of_vms_is_an_error_of_its_host(vms: Any, tmp_path: Path) -> None:
    place = Fake(Running(tmp_path / "6.1", "", 1, {}), reply={"ok": True, "vms": vms})

    assert isinstance(_running._vms_at(place), HostError)
