"""The exit code of a run, for each way it ends."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.e2e.conftest import ENOUGH_S, FIRST_S, Pyvmm, message
from tests.tty import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

SPIN = ("run", "exit", "-p", "spin")


@pytest.mark.parametrize(("params", "code"), [("", 0), ("exit=1", 1), ("exit=42", 42)])
def test_guest_chooses_the_exit_code(params: str, code: int, pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "exit", "-p", params)

    assert (done.stdout, done.stderr, done.returncode) == ("", "", code)


def test_timeout_exits_with_124_and_one_message(pyvmm: Pyvmm) -> None:
    started = time.monotonic()

    done = pyvmm(*SPIN, "--timeout", "1")

    assert done.returncode == 124
    assert done.stdout in ("", "spinning\n")  # on a busy machine the guest has not printed it yet
    assert done.stderr.startswith("pyvmm: ")
    assert len(done.stderr.splitlines()) <= 2
    assert time.monotonic() - started >= 1


def test_timeout_counts_from_the_first_boot_when_a_guest_reboots(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "exit", "-p", "reset", "--reboot", "--timeout", "2.5")

    assert done.returncode == 124
    described, last = done.stderr.splitlines()
    assert described.startswith("pyvmm: the guest has printed nothing")
    assert last == "pyvmm: the guest did not end within 2.5 s"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_a_run_exits_with_128_plus_its_number(
    number: signal.Signals, pyvmm: Pyvmm
) -> None:
    with pyvmm.start(*SPIN, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"spinning\n"

        process.send_signal(number)

        assert process.wait(ENOUGH_S) == 128 + number
        assert process.stdout.read() == process.stderr.read() == b""


@pytest.mark.usefixtures("nothing_left")
def test_busy_guest_ends_by_a_signal(pyvmm: Pyvmm) -> None:
    with pyvmm.start("run", "exit", "-p", "spin=busy") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"spinning\n"

        process.terminate()

        assert process.wait(ENOUGH_S) == 143


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("delay_s", [0.15, 0.2, 0.3])
def test_signal_during_the_start_of_a_run_is_not_lost(delay_s: float, pyvmm: Pyvmm) -> None:
    with pyvmm.start(*SPIN) as process:
        time.sleep(delay_s)

        process.terminate()

        assert process.wait(ENOUGH_S) in (
            143,
            -signal.SIGTERM,
        )  # -15: before its handler was installed


@pytest.mark.usefixtures("nothing_left")
def test_guest_ends_when_its_client_is_killed(pyvmm: Pyvmm) -> None:
    with pyvmm.start(*SPIN) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"spinning\n"

        process.kill()


@pytest.mark.usefixtures("nothing_left")
def test_run_ends_without_a_message_when_its_reader_closes(pyvmm: Pyvmm) -> None:
    command = shlex.join([*pyvmm.command, "run", "exit", "-p", "flood=100000"])
    script = f'{{ {command}; echo "code $?" >&2; }} | head -n 1'

    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=ENOUGH_S)

    assert done.stdout == f"{0:015} {0:047}\n"
    assert done.stderr == "code 141\n"


def test_mistake_on_the_command_line_exits_with_2(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "--no-such-option")

    assert done.returncode == 2
    assert "--no-such-option" in message(done)


def test_host_local_without_kvm_exits_with_3_and_the_reason(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "hello", "--host", "local")

    assert done.returncode == 3
    assert os.uname().machine in message(done) or "/dev/kvm" in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("keys", "code"), [(b"\x01x", 0), (None, 143)], ids=["ctrl-a x", "SIGTERM"]
)
def test_terminal_is_raw_during_a_run_and_restored_after_it(
    keys: bytes | None, code: int, pyvmm: Pyvmm
) -> None:
    with Terminal() as terminal:
        before = terminal.mode
        process = terminal.start([*pyvmm.command, *SPIN])
        terminal.expect(b"spinning\r\n")
        assert terminal.is_raw

        if keys is None:
            process.terminate()
        else:
            terminal.type(keys)

        assert terminal.wait(process) == code
        assert terminal.mode == before


def test_terminal_is_restored_after_a_guest_that_ended_itself(pyvmm: Pyvmm) -> None:
    with Terminal() as terminal:
        before = terminal.mode

        process = terminal.start([*pyvmm.command, "run", "echo"])
        terminal.type(b"words\rquit\r")

        terminal.expect(b"words")
        terminal.expect(b"echo: ")
        assert terminal.wait(process) == 0
        assert terminal.mode == before


@pytest.mark.usefixtures("nothing_left")
def test_interrupt_key_reaches_the_guest(pyvmm: Pyvmm) -> None:
    with Terminal() as terminal:
        process = terminal.start([*pyvmm.command, *SPIN])
        terminal.expect(b"spinning\r\n")

        terminal.type(b"\x03\x1a\x1c")  # ^C ^Z ^\ are for the guest
        terminal.type(b"\x01h")

        terminal.expect(b"stop the guest")
        assert process.poll() is None
        terminal.type(b"\x01x")
        assert terminal.wait(process) == 0


@pytest.mark.usefixtures("nothing_left")
def test_closed_terminal_ends_the_run(pyvmm: Pyvmm) -> None:
    with Terminal() as terminal:
        process = terminal.start([*pyvmm.command, *SPIN])
        terminal.expect(b"spinning\r\n")

        terminal.hang_up()

        assert process.wait(ENOUGH_S) == 129
