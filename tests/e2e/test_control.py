"""Running VMs, controlled from another terminal."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.conftest import ENOUGH_S, FIRST_S, Pyvmm, message, wait_for
from tests.tty import Terminal

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(FIRST_S),
    pytest.mark.usefixtures("emulated", "nothing_left"),
]

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(pyvmm: Pyvmm) -> Iterator[Start]:
    """Start a VM of that name whose guest waits for ever, and wait until it does."""
    with ExitStack() as stack:

        def vm(name: str, *options: str, params: str = "spin") -> subprocess.Popen[bytes]:
            process = pyvmm.start("run", "exit", "--name", name, "-c", "1", "-p", params, *options)
            stack.enter_context(process)
            stack.callback(process.terminate)
            assert process.stdout is not None
            assert process.stdout.readline() == b"spinning\n"
            return process

        yield vm


def document(pyvmm: Pyvmm, *arguments: str) -> Any:
    done = pyvmm(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["vms"]


def states(pyvmm: Pyvmm) -> dict[str, str]:
    return {vm["name"]: vm["state"] for vm in document(pyvmm, "list")}


def test_debug_shows_devices_with_their_counters(pyvmm: Pyvmm, start: Start) -> None:
    start("one", "--rng")

    (reply,) = document(pyvmm, "debug", "-a", "--devices")
    shown = pyvmm("debug", "-a", "--devices").stdout
    (counted,) = document(pyvmm, "stat", "-a")

    (rng,) = reply["devices"]
    assert (rng["device"], rng["status"], rng["counts"]["bytes"]) == ("virtio-rng", [], 0)
    assert "virtio0 virtio-rng" in shown
    assert [device["region"] for device in counted["devices"]] == ["virtio0"]


def test_list_shows_the_parts_of_each_vm(pyvmm: Pyvmm, start: Start) -> None:
    start("one", "--sve-vls=128,256", "-m", "64")
    start("two", "-c", "2", "--no-sve")

    one, two = document(pyvmm, "list")
    lines = pyvmm("list").stdout.splitlines()

    assert (one["name"], one["vcpus"], one["sve_vls"]) == ("one", 1, [128, 256])
    assert (two["name"], two["vcpus"], two["sve_vls"]) == ("two", 2, [])
    assert one["memory_bytes"] == 64 << 20
    assert one["host"] is not None
    assert one["host"] == two["host"]
    assert [line.split()[:2] for line in lines] == [
        ["NAME", "STATE"], ["one", "running"], ["two", "running"],
    ]  # fmt: skip


@pytest.mark.matrix
def test_forty_vms_of_one_host_are_listed_counted_and_stopped(pyvmm: Pyvmm, start: Start) -> None:
    running = {f"vm{number}": start(f"vm{number}", "-m", "16") for number in range(40)}

    shown = pyvmm("list").stdout.splitlines()
    counted = document(pyvmm, "stat", "-a")
    (one,) = document(pyvmm, "stat", "-n", "vm39")
    paused = document(pyvmm, "pause", "-n", "vm17")
    between = states(pyvmm)
    done = pyvmm("stop", "-a")

    assert {line.split()[0] for line in shown[1:]} == set(running)
    assert len(shown) == 41
    assert {reply["name"] for reply in counted} == set(running)
    assert (one["name"], one["state"]) == ("vm39", "running")
    assert [reply["name"] for reply in paused] == ["vm17"]
    assert between == dict.fromkeys(running, "running") | {"vm17": "paused"}
    assert (done.returncode, done.stdout) == (0, "")
    assert sorted(done.stderr.splitlines()) == sorted(f"{name}: stopped" for name in running)
    assert {process.wait(ENOUGH_S) for process in running.values()} == {0}
    assert states(pyvmm) == {}


def test_list_starts_no_host(pyvmm: Pyvmm, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    empty = tmp_path / "r"
    empty.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(empty))

    assert document(pyvmm, "list") == []
    assert not list(empty.glob("pyvmm/*/about.json"))


def test_pause_and_resume_change_the_state_and_nothing_else(pyvmm: Pyvmm, start: Start) -> None:
    start("one")
    start("two")

    paused = pyvmm("pause", "-n", "one")
    between = states(pyvmm)
    resumed = pyvmm("resume", "-a")

    assert (paused.returncode, paused.stdout, paused.stderr) == (0, "", "one: paused\n")
    assert between == {"one": "paused", "two": "running"}
    assert resumed.stderr == "one: resumed\ntwo: resumed\n"
    assert states(pyvmm) == {"one": "running", "two": "running"}


def test_stop_ends_the_vm_with_0_and_waits_for_its_end(pyvmm: Pyvmm, start: Start) -> None:
    one, two = start("one"), start("two")

    done = pyvmm("stop", "--name", "one")
    left = states(pyvmm)

    assert done.returncode == 0
    assert one.wait(ENOUGH_S) == 0
    assert left == {"two": "running"}
    assert two.poll() is None


def test_paused_vm_can_be_stopped(pyvmm: Pyvmm, start: Start) -> None:
    one = start("one")
    pyvmm("pause", "-a")

    pyvmm("stop", "-a")

    assert one.wait(ENOUGH_S) == 0


def test_run_refuses_the_name_of_a_running_vm_before_anything_starts(
    pyvmm: Pyvmm, start: Start
) -> None:
    start("one")

    done = pyvmm("run", "hello", "--name", "one")

    assert done.returncode == 2
    assert "one is running already" in message(done)


def test_killed_vm_disappears_and_frees_its_name(pyvmm: Pyvmm, start: Start) -> None:
    start("one").kill()

    wait_for(lambda: states(pyvmm) == {}, "the end of the VM")

    assert pyvmm("run", "hello", "--name", "one").returncode == 0


def test_stat_counts_exits_by_device(pyvmm: Pyvmm, start: Start) -> None:
    start("one", "-c", "2")

    (vm,) = document(pyvmm, "stat", "-n", "one")
    shown = pyvmm("stat", "-n", "one").stdout

    assert vm["exits"]["uart0 write"] >= len("spinning\n")
    assert (
        sum(one["uart0 write"] for one in vm["exits_by_vcpu"] if one)
        == (vm["exits"]["uart0 write"])
    )
    assert 0 < vm["memory_resident_bytes"] <= vm["memory_bytes"]
    assert "uart0 write" in shown
    assert shown.startswith("one  running, up ")


def test_debug_shows_registers_and_the_vm_continues(pyvmm: Pyvmm, start: Start) -> None:
    start("one", "-c", "2", "--sve-vls=128,256")

    (vm,) = document(pyvmm, "debug", "-d", "-n", "one")
    shown = pyvmm("debug", "-d", "-n", "one", "--vcpu", "0").stdout

    first, second = vm["vcpus"]
    assert (first["mp_state"], second["mp_state"]) == ("RUNNABLE", "STOPPED")
    assert 0x8008_0000 <= int(first["registers"]["PC"], 16) < 0x8009_0000
    assert first["vls"] == [128, 256]
    assert first["exits"]["uart0 write"] >= len("spinning\n")
    assert "vCPU 0: RUNNABLE" in shown
    assert f"PC                {first['registers']['PC']}" in shown
    assert " SVE " in shown
    assert states(pyvmm) == {"one": "running"}


WRONG: tuple[tuple[list[str], str], ...] = (
    (["-d", "--vcpu", "2"], "there is no vCPU 2: they are 0 to 1"),
    (["-d", "-s", "t"], "give one of -d"),
    ([], "give one of -d"),
    (["-m", "0"], "no NMI"),
    (["-s", "ab"], "needs one key"),
)


def test_debug_refuses_contradictory_options(pyvmm: Pyvmm, start: Start) -> None:
    start("one", "-c", "2")

    for wrong, words in WRONG:
        done = pyvmm("debug", "-n", "one", *wrong)

        assert done.returncode == 2, wrong
        assert words in message(done), wrong


def test_stat_updates_on_a_terminal_and_ends_with_the_vm(pyvmm: Pyvmm, start: Start) -> None:
    start("one")
    with Terminal() as terminal:
        process = terminal.start([*pyvmm.command, "stat", "-n", "one", "--interval", "0.2"])
        terminal.expect(b"uart0 write")
        terminal.expect(b"/s")

        pyvmm("stop", "-a")

        assert terminal.wait(process) == 0


def test_command_that_names_no_running_vm_lists_the_running_ones(
    pyvmm: Pyvmm, start: Start
) -> None:
    start("one")

    for verb in ("stop", "pause", "resume", "stat"):
        nobody = pyvmm(verb, "-n", "two")
        none = pyvmm(verb)
        both = pyvmm(verb, "-a", "-n", "one")

        assert (nobody.returncode, none.returncode, both.returncode) == (2, 2, 2), verb
        assert "no VM called two is running" in message(nobody), verb
        assert "running: one" in nobody.stderr, verb
        assert "running: one" in message(none), verb
        assert message(both), verb


def test_stop_of_all_vms_succeeds_when_none_runs(pyvmm: Pyvmm) -> None:
    done = pyvmm("stop", "-a")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no VM is running\n")


def test_reset_ends_the_vm_without_reboot(pyvmm: Pyvmm) -> None:
    once = pyvmm("run", "exit", "-p", "reset", "-v")
    assert once.returncode == 0
    assert once.stderr.count("pyvmm: image ") == 1

    again = ("run", "exit", "-p", "reset", "-v", "--reboot")
    with pyvmm.start(*again, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        boots = (line for line in process.stderr if line.startswith(b"pyvmm: image "))
        assert len([*itertools.islice(boots, 3)]) == 3
        process.terminate()
        process.communicate(timeout=ENOUGH_S)  # it ends when its output has room
        assert process.returncode == 128 + signal.SIGTERM


def test_rebooting_vm_can_be_stopped(pyvmm: Pyvmm) -> None:
    with pyvmm.start("run", "exit", "-p", "reset", "--reboot", "--name", "one") as process:
        wait_for(lambda: "one" in states(pyvmm), "the start")
        time.sleep(0.5)

        done = pyvmm("stop", "-n", "one")

        assert done.returncode == 0, done.stderr
        assert process.wait(ENOUGH_S) == 0
