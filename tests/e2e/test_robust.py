"""Failures of the emulated host, and commands at the same time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.host.wire import FIRST_PORTS
from tests.e2e.conftest import ENOUGH_S, FIRST_S, Pyvmm, is_alive, wait_for
from tests.runtime import own_runtime_dir

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

UNSAVED = ("--host-cpu", "max,sve-max-vq=2")  # removed before and after


def launched() -> dict[int, str]:
    """Return the host's name of every QEMU of these tests, by its process."""
    files = Path(os.environ["XDG_RUNTIME_DIR"], "pyvmm").glob("*/pid")
    return {int(text): file.parent.name for file in files
            if (text := file.read_text()).endswith("\n")}  # fmt: skip


def incomplete(pyvmm: Pyvmm, name: str) -> list[Path]:
    """Return what the cache has of a host that is not complete."""
    cache = Path(json.loads(pyvmm("host", "status", "--json").stdout)["cache"])
    return sorted((cache / "hosts").glob(f".{name}.tmp-*"))


def test_killed_host_is_a_clear_error_and_the_next_command_works(pyvmm: Pyvmm) -> None:
    with pyvmm.start("run", "exit", "-p", "spin", stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        (host,) = pyvmm.hosts()

        os.kill(host["pid"], signal.SIGKILL)

        assert process.wait(ENOUGH_S) == 3
        first, *rest = process.stderr.read().decode().splitlines()
        assert re.fullmatch(
            rf"pyvmm: the emulated host ended during the command "
            rf"\(process {host['pid']}: .*\)", first
        )  # fmt: skip
        assert rest == ["  hint: run the command again: it starts a new host"]
    assert pyvmm("run", "hello").returncode == 0
    assert pyvmm.hosts()[0]["pid"] != host["pid"]


def test_host_killed_between_commands_is_restarted_without_a_message(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start")
    os.kill(pyvmm.hosts()[0]["pid"], signal.SIGKILL)

    done = pyvmm("run", "exit", "-p", "exit=5")

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 5)


def test_host_stopped_during_a_command_is_a_clear_error(pyvmm: Pyvmm) -> None:
    with pyvmm.start("host", "exec", "--", "sh", "-c", "echo up; exec sleep 60") as process:
        assert process.stdout is not None
        process.stdout.readline()

        pyvmm("host", "stop")

        assert process.wait(ENOUGH_S) == 3


def test_commands_at_the_same_time_share_one_host(pyvmm: Pyvmm) -> None:
    runs = [pyvmm.start("run", "sve-vls", "-c", "1", f"--sve-max-vl={n}") for n in (128, 256, 512)]

    outputs = [run.communicate(timeout=ENOUGH_S)[0].decode().splitlines()[-1] for run in runs]

    assert outputs == [
        "SVE vector lengths: 128", "SVE vector lengths: 128 256", "SVE vector lengths: 128 256 512"
    ]  # fmt: skip
    assert len(pyvmm.hosts()) == 1


def test_host_gets_ports_when_more_commands_run_than_it_boots_with(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start")
    runs = [pyvmm.start("host", "exec", "cat", stdin=subprocess.PIPE) for _ in range(FIRST_PORTS)]
    for run in runs:
        assert run.stdin is not None
        assert run.stdout is not None
        run.stdin.write(b"here\n")
        run.stdin.flush()
        assert run.stdout.readline() == b"here\n"
    (host,) = pyvmm.hosts()
    listed = pyvmm("list")

    for run in runs:
        run.communicate(timeout=ENOUGH_S)

    assert host["sessions"] == FIRST_PORTS
    assert (listed.stderr, listed.returncode) == ("", 0)
    assert {run.returncode for run in runs} == {0}
    assert pyvmm("host", "exec", "echo", "there").stdout == "there\n"


def test_commands_at_the_same_time_from_cold_start_one_host(pyvmm: Pyvmm) -> None:
    pyvmm("host", "stop", "--all")

    runs = [pyvmm.start("run", "exit", "-p", f"exit={n}") for n in (11, 12, 13)]
    codes = [run.communicate(timeout=ENOUGH_S) and run.returncode for run in runs]

    assert codes == [11, 12, 13]
    assert len(pyvmm.hosts()) == 1
    assert pyvmm.hosts()[0]["sessions"] == 0


def test_command_while_the_host_is_being_stopped_gets_a_new_one(pyvmm: Pyvmm) -> None:
    for _ in range(2):
        pyvmm("host", "start")
        with pyvmm.start("host", "stop", stderr=subprocess.DEVNULL) as stop:
            done = pyvmm("host", "exec", "echo", "there")
            stop.wait(ENOUGH_S)

        # It ran on the host before its stop, or on a new one.
        ran = (done.stdout, done.returncode) == ("there\n", 0)
        assert ran or "ended during the command" in done.stderr


def test_port_of_a_killed_client_can_be_used_again(pyvmm: Pyvmm) -> None:
    for delay_s in (0.15, 0.25):
        with pyvmm.start("host", "exec", "--", "sleep", "60") as process:
            time.sleep(delay_s)
            process.kill()

        done = pyvmm("host", "exec", "echo", "there")

        assert done.stdout == "there\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_making_of_a_host_leaves_nothing_complete(
    number: signal.Signals, pyvmm: Pyvmm
) -> None:
    pyvmm("host", "rm", *UNSAVED)
    before = launched()
    with pyvmm.start("host", "start", *UNSAVED, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: launched().keys() - before, "the cold boot")
        (qemu,) = launched().keys() - before
        name = launched()[qemu]

        process.send_signal(number)

        code = process.wait(ENOUGH_S)

    if number == signal.SIGKILL:
        assert is_alive(qemu)
        pyvmm("host", "stop", "--all")
    else:
        assert code == 128 + number
        assert incomplete(pyvmm, name) == []
    wait_for(lambda: not is_alive(qemu), "QEMU's end")
    document = json.loads(pyvmm("host", "status", "--json").stdout)
    assert not any("sve-max-vq=2," in host["cpu"] for host in document["hosts"])


def test_runtime_directory_with_a_comma_and_a_space_works(pyvmm: Pyvmm, tmp_path: Path) -> None:
    odd = Path(os.environ["XDG_RUNTIME_DIR"]) / "a, b"
    odd.mkdir(mode=0o700)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(odd)}

    done = pyvmm("run", "exit", "-p", "exit=6", env=environment)
    pyvmm("host", "stop", "--all", env=environment)

    assert (done.stderr, done.returncode) == ("", 6)


def test_command_ends_when_its_host_hangs(pyvmm: Pyvmm) -> None:
    number = signal.SIGHUP
    with pyvmm.start("run", "exit", "-p", "spin") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"spinning\n"
        (host,) = pyvmm.hosts()
        os.kill(host["pid"], signal.SIGSTOP)
        try:
            process.send_signal(number)
            code = process.wait(ENOUGH_S)
        finally:
            os.kill(host["pid"], signal.SIGCONT)

    assert code == 128 + number


@pytest.fixture(scope="module")
def frozen(pyvmm: Pyvmm) -> Iterator[dict[str, Any]]:
    """Run a VM called mv1 in a host with its own runtime directory, and stop the host's process."""
    with own_runtime_dir("frozen"):
        assert pyvmm("host", "start", timeout=FIRST_S).returncode == 0
        with pyvmm.start("run", "exit", "-p", "spin", "--name", "mv1") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"spinning\n"
            (host,) = pyvmm.hosts()
            os.kill(host["pid"], signal.SIGSTOP)
            try:
                yield host
            finally:
                os.kill(host["pid"], signal.SIGCONT)
                process.terminate()


@pytest.mark.parametrize("arguments", ["list", "stop -a", "stop -n mv1", "stat -a", "pause -a"])
def test_frozen_host_is_named_within_ten_seconds_and_never_counts_as_empty(
    arguments: str, pyvmm: Pyvmm, frozen: dict[str, Any]
) -> None:
    done = pyvmm(*arguments.split(), timeout=10)

    assert done.returncode == 3
    refusal = f"pyvmm: {frozen['name']}: the emulated host does not answer: its process "
    assert done.stderr.startswith(f"{refusal}{frozen['pid']} is stopped\n")
    assert "no VM is running" not in done.stderr


def test_frozen_host_is_named_in_the_list_as_json(pyvmm: Pyvmm, frozen: dict[str, Any]) -> None:
    done = pyvmm("list", "--json", timeout=10)

    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert document["vms"] == []
    assert [entry["host"] for entry in document["hosts_not_answering"]] == [frozen["name"]]
