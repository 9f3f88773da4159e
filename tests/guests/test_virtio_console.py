"""The virtio console with a bare-metal driver, as a user runs it."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import re
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest

from pyvmm.layout import MIB

# The first command may have to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SIZES = [pytest.param(1 * MIB, id="1M"), pytest.param(16 * MIB, id="16M", marks=pytest.mark.matrix)]
EOT = b"\x04"
CTRL_A = 0x01

Command = Callable[..., list[str]]


@pytest.fixture
def command(pyvmm_cmd: list[str], built: Path) -> Command:
    """Return the command that runs the guest with a virtio console."""

    def words(params: str = "", *options: str) -> list[str]:
        run = [*pyvmm_cmd, "run", "--console=virtio", "-c", "1", "-p", params, *options]
        return [*run, str(built / "virtio-console")]

    return words


def fnv(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash."""
    return reduce(
        lambda sum_, byte: (sum_ ^ byte) * 0x100000001B3 % 2**64, data, 0xCBF29CE484222325
    )


@pytest.mark.parametrize("params", ["", "flags"], ids=["event-idx", "flags"])
def test_driver_echoes_what_it_reads_until_the_end(command: Command, params: str) -> None:
    done = subprocess.run(command(params), input=b"one\ntwo\n" + EOT, capture_output=True)

    assert done.stdout.startswith(b"!\nvirtio-console: ready\none\ntwo\necho: 8 bytes, "), (
        done.stderr
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_driver_can_reset_and_restart_the_device(command: Command) -> None:
    pieces = [b"first\n", b"second\n", EOT]
    with subprocess.Popen(
        command("restart"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as guest:
        assert guest.stdin and guest.stdout
        output = b""
        for piece in pieces:
            guest.stdin.write(piece)
            guest.stdin.flush()
            while piece != EOT and piece + b"again\n" not in output:
                output += read_some(guest.stdout.fileno())
        rest, errors = guest.communicate(timeout=120)

    assert rest.startswith(b"echo: 13 bytes, "), errors
    assert guest.returncode == 0


def test_driver_error_is_reported_once_and_a_reset_recovers(command: Command) -> None:
    done = subprocess.run(command("break"), stdin=subprocess.DEVNULL, capture_output=True)

    assert done.stdout == b"!\nthe device needs a reset\nand works again\n"
    assert re.fullmatch(
        rb"pyvmm: virtio-console: the guest's driver is broken, .*: transmitq chain 0: a loop.*\n",
        done.stderr,
    )
    assert done.returncode == 0


@pytest.mark.parametrize("options", [["--console=serial"], ["--virtio-transport=mmio-legacy"]])
def test_device_exists_only_when_requested(command: Command, options: list[str]) -> None:
    done = subprocess.run(command("", *options), stdin=subprocess.DEVNULL, capture_output=True)

    assert done.stdout.startswith(b"no virtio console here"), done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("size", SIZES)
def test_flood_arrives_whole_when_the_reader_stalls(command: Command, size: int) -> None:
    expected = b"!\n" + b"".join(b"%015d %047d\n" % (at, 0) for at in range(0, size, 64))
    with subprocess.Popen(
        command(f"flood={size}"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as guest:
        assert guest.stdout
        output = bytearray()
        stalls = 5
        while data := guest.stdout.read(1 << 16):
            output += data
            if len(output) > (6 - stalls) * size // 6 and stalls:
                stalls -= 1
                time.sleep(0.3)

    assert output == expected
    assert guest.returncode == 0


@pytest.mark.parametrize("size", SIZES)
def test_input_arrives_whole_when_the_guest_stalls(command: Command, size: int) -> None:
    data = random.Random(6).randbytes(size + size // 64).replace(bytes([CTRL_A]), b"")[:size]

    done = subprocess.run(command(f"drain={size}"), input=data, capture_output=True)

    assert done.stdout == b"!\nhash 0x%x\n" % fnv(data), done.stderr
    assert done.returncode == 0


def test_guest_sees_the_terminals_size_and_its_changes(command: Command) -> None:
    person, program = pty.openpty()
    set_size(person, 80, 25)
    guest = subprocess.Popen(
        command("resize"), stdin=program, stdout=program, preexec_fn=lambda: os.login_tty(program)
    )
    os.close(program)

    first = read_until(person, b"rows\r\n")
    set_size(person, 132, 43)
    second = read_until(person, b"rows\r\n")
    code = guest.wait(120)
    os.close(person)

    assert first.endswith(b"80 columns, 25 rows\r\n")
    assert second.endswith(b"132 columns, 43 rows\r\n")
    assert code == 0


def set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read_until(terminal: int, end: bytes) -> bytes:
    output = b""
    while not output.endswith(end):
        output += read_some(terminal)
    return output


def read_some(fd: int) -> bytes:
    data = os.read(fd, 4096)
    assert data, "the guest has ended"
    return data
