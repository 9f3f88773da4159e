"""A command's streams, exit code and signals, through both halves of the channel."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.host import client
from pyvmm.host.connection import connected, greet
from pyvmm.host.wire import HELLO, MAGIC, STDIN_WINDOW, Frame, FrameReader, pack
from tests.host.conftest import ENOUGH_S, Channel, wait_for

MIB = 1 << 20
LOOP = "while :; do sleep 0.05; done"


def is_alive(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it may end between open and read
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def written(path: Path) -> str:
    """Wait for content in a file, and return it."""
    wait_for(lambda: path.exists() and path.read_text(), f"writing {path.name}")
    return path.read_text()


def test_output_and_error_stay_apart(channel: Channel) -> None:
    done = channel.run("sh", "-c", "echo out; echo err >&2; echo more")

    assert (done.stdout, done.stderr, done.returncode) == (b"out\nmore\n", b"err\n", 0)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 42, 124, 255])
def test_session_returns_the_commands_exit_code(code: int, channel: Channel) -> None:
    assert channel.run("sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV"])
def test_exit_code_is_128_and_the_number_of_a_fatal_signal(name: str, channel: Channel) -> None:
    done = channel.run("sh", "-c", f"kill -{name} $$")

    assert done.returncode == 128 + signal.Signals[f"SIG{name}"]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("/nowhere/at-all", 127, "/nowhere/at-all: No such file or directory"),
        ("no-such-program", 127, "no-such-program: No such file or directory"),
        ("./data", 126, "./data: Permission denied"),
    ],
)
def test_command_that_cannot_start_has_a_shells_exit_code(
    command: str, code: int, words: str, channel: Channel, tmp_path: Path
) -> None:
    (tmp_path / "data").touch(0o644)

    done = channel.run(command, cwd=tmp_path)

    assert (done.stderr.decode(), done.returncode) == (f"pyvmm: {words}\n", code)


def test_module_runs_in_the_forked_interpreter(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text("import sys; print(sys.argv); sys.exit('bad luck')")

    done = channel.run(
        "python3", "-m", "shown", "a b", env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )

    assert done.stdout.decode().endswith("shown.py', 'a b']\n")
    assert (done.stderr, done.returncode) == (b"bad luck\n", 1)


def test_command_has_the_users_directory_umask_and_chosen_variables(
    channel: Channel, tmp_path: Path
) -> None:
    script = 'pwd; umask; id -u; echo "$TERM $PYVMM_RUN_MEM $PYVMM_INSIDE:$SECRET"'
    environment = {"TERM": "vt52", "PYVMM_RUN_MEM": "7", "SECRET": "no", "PYVMM_INSIDE": "faked"}

    done = channel.run("sh", "-c", script, cwd=tmp_path, umask=0o027, env=environment)

    assert done.stdout.decode().splitlines() == [
        str(tmp_path), "0027", str(os.getuid()), "vt52 7 QEMU none (TCG), -cpu any:"
    ]  # fmt: skip


def test_command_inherits_no_descriptor_of_the_session(channel: Channel) -> None:
    done = channel.run("sh", "-c", "ls /proc/self/fd")

    assert done.stdout == b"0\n1\n2\n3\n"  # 3 is the directory being listed


@pytest.mark.parametrize("size", [0, 1, STDIN_WINDOW, 3 * MIB + 1])
def test_input_arrives_complete_and_ends(size: int, channel: Channel) -> None:
    data = os.urandom(size)

    done = channel.run("sha256sum", input=data)

    assert done.stdout.decode().split()[0] == hashlib.sha256(data).hexdigest()


def test_signals_arrive_while_input_waits_for_a_slow_reader(channel: Channel) -> None:
    with channel.start("sleep", "60", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        fd = process.stdin.fileno()
        os.set_blocking(fd, False)
        taken = 0
        while select.select([], [fd], [], 1.0 if taken > MIB else ENOUGH_S)[1]:
            taken += os.write(fd, bytes(65536))

        process.send_signal(signal.SIGTERM)

        assert process.wait(ENOUGH_S) == 143
        # On its way are: two pipes' content, what may be unread, and what was just read.
        assert MIB < taken <= 2 * MIB + 2 * STDIN_WINDOW
        os.set_blocking(fd, True)


@pytest.mark.parametrize("then", ["exit 5", "exec <&-; sleep 0.3; exit 5"])
def test_unread_input_is_discarded(then: str, channel: Channel) -> None:
    done = channel.run("sh", "-c", f"head -c 3; {then}", input=b"abc" + bytes(4 * MIB))

    assert (done.stdout, done.stderr, done.returncode) == (b"abc", b"", 5)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2],
)
def test_signal_reaches_the_command(number: signal.Signals, channel: Channel) -> None:
    script = f"trap 'echo got; exit 9' {number.name.removeprefix('SIG')}; echo ready; {LOOP}"

    with channel.start("sh", "-c", script) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)

        assert process.wait(ENOUGH_S) == 9
        assert process.stdout.read() == b"got\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_command_that_does_not_catch_it(
    number: signal.Signals, channel: Channel
) -> None:
    with channel.start("sh", "-c", "echo ready; exec sleep 60") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)

        assert process.wait(ENOUGH_S) == 128 + number


def test_interrupted_module_prints_nothing_and_ends_with_130(
    channel: Channel, tmp_path: Path
) -> None:
    slow = "import time\nprint('ready', flush=True)\nfor _ in range(6000): time.sleep(0.01)\n"
    (tmp_path / "slow.py").write_text(slow)  # a signal before a sleep begins is handled after it
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    with channel.start("python3", "-m", "slow", env=environment, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)

        assert process.wait(ENOUGH_S) == 130
        assert process.stderr.read() == b""


@contextmanager
def session(channel: Channel, *argv: str) -> Iterator[socket.socket]:
    """Connect to a session and send the greeting."""
    request = client.request_for(channel.running, list(argv), [])
    with connected(channel.running) as connection:
        assert greet(channel.running, connection, request) == b""
        connection.settimeout(ENOUGH_S)
        yield connection


def frames(connection: socket.socket) -> list[tuple[Frame, bytes]]:
    """Return everything that a session sends."""
    reader, found = FrameReader(), []
    while data := connection.recv(65536):
        found += list(reader.feed(data))
    return found


def test_signal_sent_with_the_greeting_is_not_lost(channel: Channel) -> None:
    with connected(channel.running) as connection:
        request = client.request_for(channel.running, ["sleep", "60"], [])
        send = connection.sendall
        terminate = pack(Frame.SIGNAL, bytes([signal.SIGTERM]))

        class Together:
            """A connection that sends one frame more with the request."""

            settimeout = connection.settimeout
            recv = connection.recv

            def sendall(self, data: bytes) -> None:
                send(data + terminate)

        rest = greet(channel.running, Together(), request)  # type: ignore[arg-type]  # a fake

        assert list(FrameReader().feed(rest)) + frames(connection) == [
            (Frame.EXIT, bytes([128 + signal.SIGTERM]))
        ]


def test_damaged_stream_ends_the_command(channel: Channel, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with session(channel, "sh", "-c", f"echo $$ >{pid}; exec sleep 60") as connection:
        process = int(written(pid))
        connection.sendall(b"\xff" * 100)

        assert frames(connection) == []
        wait_for(lambda: not is_alive(process), "the command's end")


def test_output_to_a_slow_client_is_complete(channel: Channel) -> None:
    script = "import sys; data = b''.join(b'%09d\\n' % i for i in range(1_200_000));"
    script += "sys.stdout.buffer.write(data); sys.stderr.buffer.write(data[:3_000_000])"
    expected = b"".join(b"%09d\n" % i for i in range(1_200_000))

    with channel.start(sys.executable, "-c", script, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = bytearray()
        read_errors = process.stderr.read
        reader = threading.Thread(target=lambda: errors.extend(read_errors()))
        reader.start()
        shown = bytearray()
        while data := os.read(process.stdout.fileno(), 65536):
            shown += data
            time.sleep(0.003)
        reader.join()

        assert process.wait(ENOUGH_S) == 0
        assert shown == expected
        assert errors == expected[:3_000_000]


def test_command_blocks_when_the_client_does_not_read(channel: Channel, tmp_path: Path) -> None:
    log = tmp_path / "written"
    script = (
        f"import os\nwhile True: os.write(1, bytes(65536)); open({str(log)!r}, 'ab').write(b'.')"
    )

    with channel.start(sys.executable, "-c", script) as process:
        wait_for(log.exists, "output")
        sizes = [-1, 0]
        while sizes[-1] != sizes[-2]:
            time.sleep(0.3)
            sizes.append(log.stat().st_size * 65536)

        assert sizes[-1] < 8 * MIB  # pipes, sockets, and what is queued
        process.kill()


def test_closed_output_pipe_ends_the_client_with_sigpipe(channel: Channel, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with channel.start("sh", "-c", f"echo $$ >{pid}; exec yes", stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.wait(ENOUGH_S) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
    wait_for(lambda: not is_alive(int(pid.read_text())), "the command's end")


def test_client_reports_output_that_cannot_be_written(channel: Channel) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            channel.command("echo", "words"), stdout=full, stderr=subprocess.PIPE, timeout=ENOUGH_S
        )

    assert done.stderr == b"pyvmm: cannot write the command's output: No space left on device\n"
    assert done.returncode == 3


def test_background_child_does_not_delay_the_end(channel: Channel) -> None:
    done = channel.run("sh", "-c", "sleep 600 & echo $!; exit 4")

    child = int(done.stdout)
    assert done.returncode == 4
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


def test_flooding_background_child_does_not_delay_the_end(channel: Channel) -> None:
    with channel.start("sh", "-c", "yes & exit 4") as process:
        assert process.stdout is not None
        read = 0
        while data := os.read(process.stdout.fileno(), 65536):
            read += len(data)
            assert read < 16 * MIB
            time.sleep(0.002)

        assert process.wait(ENOUGH_S) == 4


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("trap 'echo hung up >$0; exit' HUP;", "hung up\n"),
        ("trap 'echo hung up >$0' HUP;", "hung up\n"),  # and continues: it is killed
        ("", ""),
    ],
    ids=["ends", "ignores", "dies"],
)
def test_command_gets_sighup_when_its_client_vanishes(
    script: str, says: str, channel: Channel, tmp_path: Path
) -> None:
    pid, log = tmp_path / "pid", tmp_path / "log"
    log.touch()
    with channel.start("sh", "-c", f"{script} echo $$ >{pid}; {LOOP}", str(log)) as process:
        command = int(written(pid))

        process.kill()
        process.wait()

        wait_for(lambda: not is_alive(command), "the command's end")
        assert log.read_text() == says


def test_commands_children_end_when_its_client_vanishes(channel: Channel, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"trap '' HUP; sh -c 'echo $$ >{pid}; {LOOP}' & trap 'exit' HUP; {LOOP}"
    with channel.start("sh", "-c", script) as process:
        child = int(written(pid))

        process.kill()
        process.wait()

        wait_for(lambda: not is_alive(child), "the child's end")


def test_session_skips_leftovers_of_an_earlier_client(channel: Channel) -> None:
    leftovers = os.urandom(100_000) + pack(Frame.OUT, b"stale") + pack(Frame.EXIT, b"\x07")
    stale = channel.directory / "stale"
    stale.write_bytes(leftovers + HELLO[:-1] + MAGIC + os.urandom(16) + MAGIC[:-1])
    try:
        done = channel.run("sh", "-c", "echo fresh; exit 5")
    finally:
        stale.unlink()

    assert (done.stdout, done.returncode) == (b"fresh\n", 5)


def test_sessions_run_side_by_side(channel: Channel) -> None:
    with channel.start("sh", "-c", "echo first; sleep 60") as first:
        assert first.stdout is not None
        first.stdout.readline()

        second = channel.run("echo", "second")

        assert second.stdout == b"second\n"
        assert first.poll() is None
        first.terminate()
