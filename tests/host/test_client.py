"""The client on a terminal: raw mode, window size, ^C and ^Z, background jobs, the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.conftest import ENOUGH_S, Channel, wait_for
from tests.tty import Terminal

LOOP = "while :; do sleep 0.05; done"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal() as made:
        yield made


def shell(*words: str) -> tuple[str, ...]:
    return ("sh", "-c", *words)


def test_command_has_a_terminal_of_the_same_size(channel: Channel, terminal: Terminal) -> None:
    terminal.resize(33, 111)

    process = terminal.start(channel.command(*shell("tty; stty size")))

    assert terminal.wait(process) == 0
    assert terminal.shown.startswith(b"/dev/pts/")
    assert terminal.shown.endswith(b"33 111\r\n")


def test_window_change_reaches_the_command(channel: Channel, terminal: Terminal) -> None:
    script = f"trap 'stty size; exit' WINCH; echo ready; {LOOP}"
    process = terminal.start(channel.command(*shell(script)))
    terminal.expect(b"ready")

    terminal.resize(50, 60)

    terminal.expect(b"50 60\r\n")
    assert terminal.wait(process) == 0


def test_terminal_is_raw_during_the_command_and_restored_after_it(
    channel: Channel, terminal: Terminal
) -> None:
    before = terminal.mode
    process = terminal.start(channel.command(*shell("echo ready; read line; echo got $line")))
    terminal.expect(b"ready")
    assert terminal.is_raw

    terminal.type(b"words\r")

    terminal.expect(b"words\r\ngot words\r\n")  # the echo is the inner terminal's
    assert terminal.wait(process) == 0
    assert terminal.mode == before


def test_interrupt_key_sends_sigint_to_the_command(channel: Channel, terminal: Terminal) -> None:
    before = terminal.mode
    script = f"trap 'echo caught; exit 7' INT; echo ready; {LOOP}"
    process = terminal.start(channel.command(*shell(script)))
    terminal.expect(b"ready")

    terminal.type(b"\x03")

    terminal.expect(b"caught\r\n")
    assert terminal.wait(process) == 7
    assert terminal.mode == before


def test_interrupt_key_ends_a_command_that_does_not_catch_it(
    channel: Channel, terminal: Terminal
) -> None:
    process = terminal.start(channel.command(*shell("echo ready; exec sleep 60")))
    terminal.expect(b"ready")

    terminal.type(b"\x03")

    assert terminal.wait(process) == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_terminal_is_restored_after_a_signal(
    number: signal.Signals, channel: Channel, terminal: Terminal
) -> None:
    before = terminal.mode
    process = terminal.start(channel.command(*shell("echo ready; exec sleep 60")))
    terminal.expect(b"ready")

    process.send_signal(number)

    assert terminal.wait(process) == 128 + number
    assert terminal.mode == before


def test_end_of_file_key_ends_the_input(channel: Channel, terminal: Terminal) -> None:
    process = terminal.start(channel.command(*shell("echo ready; wc -c")))
    terminal.expect(b"ready")

    terminal.type(b"1234\r\x04")

    assert terminal.wait(process) == 0
    assert terminal.shown.split()[-1] == b"5"


def test_closed_window_sends_sighup_to_the_command(
    channel: Channel, terminal: Terminal, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = f"trap 'echo hung up >{log}; exit' HUP; echo ready; {LOOP}"
    process = terminal.start(channel.command(*shell(script)))
    terminal.expect(b"ready")

    terminal.hang_up()

    wait_for(log.exists, "the hang-up")
    process.wait(ENOUGH_S)


def test_closed_window_ends_a_command_that_floods_the_terminal(
    channel: Channel, terminal: Terminal, tmp_path: Path
) -> None:
    said = tmp_path / "stderr"
    process = terminal.start(
        ["sh", "-c", f'trap "" HUP; exec "$@" 2>{said}', "sh", *channel.command("yes")]
    )
    terminal.expect(b"y\r\ny")

    terminal.hang_up()

    assert process.wait(ENOUGH_S) == 128 + signal.SIGHUP
    assert said.read_bytes() == b""


def test_output_to_a_pipe_stays_apart_from_errors_on_the_terminal(
    channel: Channel, terminal: Terminal
) -> None:
    process = terminal.start(
        channel.command(*shell("echo out; echo err >&2; tty; test -t 1 || echo pipe")),
        stdout=subprocess.PIPE,
    )

    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    assert output.startswith(b"out\n/dev/pts/")
    assert output.endswith(b"\npipe\n")
    terminal.expect(b"err\r\n")
    assert terminal.wait(process) == 0


def test_terminal_mode_does_not_change_when_input_is_a_file(
    channel: Channel, terminal: Terminal
) -> None:
    before = terminal.mode

    process = terminal.start(
        channel.command(*shell("echo ready; exec sleep 60")), stdin=subprocess.DEVNULL
    )
    terminal.expect(b"ready\r\n")

    assert terminal.mode == before
    terminal.type(b"\x03")  # from the user's own terminal, to this process
    assert terminal.wait(process) == 130


def test_unread_input_is_not_echoed(channel: Channel, terminal: Terminal) -> None:
    with Path("/dev/zero").open("rb") as zeros:
        process = terminal.start(
            channel.command(*shell("exec <&-; sleep 0.3; echo done")), stdin=zeros
        )

        assert terminal.wait(process) == 0
    assert terminal.shown == b"done\r\n"


def test_large_output_on_the_terminal_is_complete(channel: Channel, terminal: Terminal) -> None:
    process = terminal.start(channel.command("seq", "30000"))

    assert terminal.wait(process) == 0
    assert terminal.shown.split() == [b"%d" % n for n in range(1, 30001)]


@pytest.fixture
def job_control(terminal: Terminal) -> subprocess.Popen[bytes]:
    """Start a shell with job control at the terminal."""
    process = terminal.start(
        ["bash", "--norc", "--noediting", "-i"], env={**os.environ, "PS1": "@ "}
    )
    terminal.expect(b"@ ")
    return process


def typed(channel: Channel, *argv: str) -> bytes:
    """Return a command as it is typed into a shell."""
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in channel.command(*argv))
    return quoted.encode()


def test_stopped_client_makes_the_terminal_raw_again_when_it_continues(
    channel: Channel, terminal: Terminal, job_control: object
) -> None:
    line = b"sh -c 'echo client $$; exec \"$@\"' sh "
    terminal.type(
        line + typed(channel, *shell("echo now ready; read line; echo got $line")) + b"\r"
    )
    terminal.expect(b"\nclient ")
    client = int(terminal.expect(b"\r\nnow ready\r\n"))

    os.kill(client, signal.SIGSTOP)
    terminal.expect(b"Stopped")
    terminal.expect(b"@ ")
    terminal.type(b"fg\r")
    wait_for(lambda: terminal.is_raw, "raw mode")
    terminal.type(b"words\r")

    terminal.expect(b"got words\r\n")
    terminal.expect(b"@ ")


def test_background_command_does_not_change_the_terminal(
    channel: Channel, terminal: Terminal, job_control: object
) -> None:
    before = terminal.mode
    script = "echo back ground; sleep 0.3; read line; echo got $line"

    terminal.type(typed(channel, *shell(script)) + b" &\r")
    terminal.expect(b"@ back ground\r")
    time.sleep(0.1)

    assert terminal.mode[:3] == before[:3]
    terminal.type(b"fg\r")
    wait_for(lambda: terminal.is_raw, "raw mode")
    terminal.type(b"words\r")
    terminal.expect(b"got words\r\n")
    terminal.expect(b"@ ")


def test_suspended_command_continues_without_a_shell(channel: Channel, terminal: Terminal) -> None:
    process = terminal.start(channel.command(*shell("echo ready; read line; echo got $line")))
    terminal.expect(b"ready\r\n")

    terminal.type(b"\x1a")  # without a shell it could not continue
    terminal.type(b"words\r")

    terminal.expect(b"got words")
    assert terminal.wait(process) == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ignored_signal_stays_ignored(number: signal.Signals, channel: Channel) -> None:
    ignoring = f"trap '' {number.name.removeprefix('SIG')}; exec \"$@\""
    command = channel.command(*shell("echo ready; sleep 0.5; exit 4"))

    with subprocess.Popen(
        ["sh", "-c", ignoring, "sh", *command], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)

        assert process.wait(ENOUGH_S) == 4


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
def test_client_refuses_an_invalid_idle_time(text: str, channel: Channel) -> None:
    done = channel.run("true", env={**os.environ, "PYVMM_HOST_IDLE": text})

    assert done.stderr.decode() == f"pyvmm: PYVMM_HOST_IDLE={text}: not a number of seconds\n"
    assert done.returncode == 2


def test_terminal_mode_check_detects_raw_mode(terminal: Terminal) -> None:
    raw = f"import termios, tty; tty.setraw(0, {termios.TCSANOW}); input()"

    terminal.start([sys.executable, "-c", raw])

    wait_for(lambda: terminal.is_raw, "raw mode")


def test_second_sigterm_ends_the_client_when_the_command_does_not_end(
    channel: Channel, terminal: Terminal
) -> None:
    before = terminal.mode
    process = terminal.start(channel.command(*shell(f"trap 'echo deaf' TERM; echo ready; {LOOP}")))
    terminal.expect(b"ready")

    process.terminate()
    terminal.expect(b"deaf")
    process.terminate()

    assert terminal.wait(process) == 143
    assert terminal.mode == before
