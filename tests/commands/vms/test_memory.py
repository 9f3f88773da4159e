"""`pyvmm balloon` and `pyvmm memory` with fake VMs."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from pyvmm import cli
from pyvmm.commands._deviceopts import device_configs
from pyvmm.commands._fields import spell
from pyvmm.commands.vms import _guestmemory, balloon, memory
from pyvmm.commands.vms._guestmemory import balloon_line, memory_line, statistics_lines
from pyvmm.commands.vms._running import Found
from pyvmm.commands.vms.stat import lines as stat_lines
from pyvmm.config import Balloon, Hotplug
from pyvmm.control.wire import Message, failure
from pyvmm.errors import UsageError
from pyvmm.layout import GIB, MIB

Capture = pytest.CaptureFixture[str]

INFO = {"ok": True, "name": "one", "state": "running", "vcpus": 2, "memory_bytes": 256 * MIB}


def balloon_reply(actual: float, target: float, **more: Any) -> Message:
    state = {
        "actual_bytes": int(actual * MIB),
        "target_bytes": int(target * MIB),
        "has_driver": True,
        "hinting": False,
        "hinted_bytes": 0,
    }
    return {**INFO, "balloon": state | more, "hotplug": None}


def memory_reply(plugged: int, requested: int, **more: Any) -> Message:
    state = {"ram_bytes": 256 * MIB, "plugged_bytes": plugged * MIB, "has_driver": True,
             "requested_bytes": requested * MIB, "most_bytes": 768 * MIB}  # fmt: skip
    return {**INFO, "hotplug": state | more, "balloon": None}


class Asked:
    """A VM that records requests and gives these replies, repeating the last."""

    name = "one"

    def __init__(self, *replies: Message) -> None:
        self.requests: list[Message] = []
        self._replies = itertools.chain(replies, itertools.repeat(replies[-1]))

    def ask(self, request: Message) -> Message:
        self.requests.append(request)
        return next(self._replies)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guestmemory, "POLL_S", 0.001)


def run(monkeypatch: pytest.MonkeyPatch, vm: Asked, *arguments: str) -> int:
    found: Any = Found([], [])
    found.vms.append(vm)
    for module in (balloon, memory):
        monkeypatch.setattr(module, "chosen", lambda name, everything: found)
    return cli.main(arguments)


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["-i", "64"], {"more": 64 * MIB}),
        (["--inflate=1G"], {"more": GIB}),
        (["-d", "64"], {"more": -64 * MIB}),
        (["--size", "0"], {"size": 0}),
        (["--collect"], {"collect": True}),
        ([], {}),
    ],
)
def test_options_become_a_request(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], request_: Message
) -> None:
    vm = Asked(balloon_reply(0, 64))

    assert run(monkeypatch, vm, "balloon", "-n", "one", *arguments) == 0
    assert vm.requests == [{"do": "balloon", **request_}]
    assert capsys.readouterr().out.startswith("one: balloon 0 MiB, asked for 64 MiB")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["balloon", "-i", "1", "-d", "1"], "contradict each other; give one"),
        (["balloon", "--collect", "--size", "1"], "contradict each other"),
        (["balloon", "-i", "-5"], "--inflate: '-5' is not a size"),
        (["balloon", "-i", "x"], "--inflate: 'x' is not a size"),
        (["memory", "one", "much"], "SIZE: 'much' is not a size"),
        (["memory"], "Missing argument 'NAME'"),
    ],
)
def test_mistake_is_refused_before_any_vm_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], words: str
) -> None:
    vm = Asked(INFO)

    assert run(monkeypatch, vm, *arguments) == 2
    assert words in capsys.readouterr().err
    assert vm.requests == []


def test_wait_ends_when_the_balloon_has_its_size(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    vm = Asked(balloon_reply(0, 64), balloon_reply(31.5, 64), balloon_reply(64, 64))

    assert run(monkeypatch, vm, "balloon", "-n", "one", "-i", "64", "--wait", "60") == 0
    assert vm.requests == [{"do": "balloon", "more": 64 * MIB}, *[{"do": "balloon"}] * 2]
    assert capsys.readouterr().out == "one: balloon 64 MiB\n"


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({}, "pyvmm stat -m"),
        ({"has_driver": False}, "virtio_balloon"),
    ],
)
def test_wait_that_times_out_reports_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, more: dict[str, bool], hint: str
) -> None:
    vm = Asked(balloon_reply(31.5, 64, **more))

    assert run(monkeypatch, vm, "balloon", "-n", "one", "-i", "64", "--wait", "0.01") == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "one: after 0.01 s the balloon has 31.5 MiB, not 64 MiB" in told.err
    assert hint in told.err


def test_collection_that_times_out_is_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    vm = Asked(balloon_reply(0, 0, hinting=True))

    assert run(monkeypatch, vm, "balloon", "-n", "one", "--collect", "--wait", "0") == 1
    assert vm.requests[-1] == {"do": "balloon", "collect": False}
    assert "has not reported its free memory" in capsys.readouterr().err


def test_refusal_of_the_vm_is_reported_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    vm = Asked({"name": "one", **failure("the VM has no balloon", "start it so", 2)})

    assert run(monkeypatch, vm, "balloon", "-n", "one", "-i", "64", "--wait", "5") == 2
    assert capsys.readouterr().err == "pyvmm: one: the VM has no balloon\n  hint: start it so\n"


def test_memory_sends_the_request_waits_and_prints_the_size(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    vm = Asked(memory_reply(0, 768), memory_reply(768, 768))

    assert run(monkeypatch, vm, "memory", "one", "1G", "--wait", "60") == 0
    assert vm.requests == [{"do": "memory", "size": GIB}, {"do": "memory"}]
    assert capsys.readouterr().out == (
        "one: memory 1024 MiB: 256 MiB and 768 MiB of 768 MiB plugged\n"
    )


def test_memory_prints_the_reply_as_json(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    reply = memory_reply(0, 128)

    assert run(monkeypatch, Asked(reply), "memory", "one", "--json") == 0
    assert json.loads(capsys.readouterr().out)["vms"] == [reply]


def test_lines_show_sizes_that_are_not_reached_yet() -> None:
    assert balloon_line(balloon_reply(1.5, 64)) == "balloon 1.5 MiB, asked for 64 MiB"
    assert balloon_line(balloon_reply(64, 64, hinting=True)) == "balloon 64 MiB"
    assert balloon_line(balloon_reply(0, 0, has_driver=False)) == (
        "balloon 0 MiB; the guest has no driver for it (yet)"
    )
    assert memory_line(memory_reply(2, 4)) == (
        "memory 258 MiB: 256 MiB and 2 MiB of 768 MiB plugged, asked for 4 MiB"
    )
    assert memory_line({**INFO, "hotplug": None}) == "memory 256 MiB, no room for more"


def test_stat_shows_the_guests_memory_statistics() -> None:
    said = {"free_bytes": 3 * MIB // 2, "major_faults": 7, "age_s": 0.04}
    reply = {**balloon_reply(64, 64), "guest_memory": said, "uptime_s": 1.0,
             "memory_resident_bytes": MIB}  # fmt: skip

    assert list(stat_lines(reply, None, memory=True)) == [
        "one  running, up 1.0 s, 2 vCPUs, 256 MiB of memory, 1.0 MiB of it in use",
        "  balloon 64 MiB",
        "  reported by the guest 0.0 s ago",
        "    free                       1.5 MiB",
        "    major faults                     7",
    ]
    assert list(statistics_lines({**INFO, "guest_memory": None})) == []


OPTIONS: dict[str, Any] = {
    "hotplug": None, "balloon": False, "rng": False, "share": (), "vsock": None,
}  # fmt: skip


def test_run_accepts_hotplug_and_balloon() -> None:
    some = {**OPTIONS, "hotplug": "1G,block=4M", "balloon": True}

    assert device_configs(_all(some)) == (Hotplug(size=GIB, block_size=4 * MIB), Balloon())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("much", "--hotplug: 'much' is not a size"),
        ("1G,blocks=2", "--hotplug 1G,blocks=2: only block=SIZE can follow"),
        ("1G,block=x", "--hotplug: 'x' is not a size"),
        ("3", "--hotplug 3 MiB: not a multiple of its blocks"),
        ("64,block=3", "--hotplug: blocks of 3 MiB"),
    ],
)
def test_run_refuses_an_invalid_hotplug(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        device_configs(_all({**OPTIONS, "hotplug": text}))

    assert words in spell(caught.value.message)


def _all(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, with defaults for other devices."""
    nothing = {**OPTIONS, "disk": (), "pmem": ()}
    return nothing | options
