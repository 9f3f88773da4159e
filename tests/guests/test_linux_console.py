"""A Linux guest's whole boot log by the UART's fast path, with input at the same time.

The test compares the console's output with the guest's dmesg.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from tests import linux
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# Typed during the boot. A shell that starts may drop some of it, so the test wipes the line, and
# types again at the prompt.
TYPED = b"typed while it boots " * 4
ASKED = b"\x15echo still $((40 + 2))\n"
TIMES = 20
EARLYCON = "earlycon=uart8250,mmio,0x1000000"


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linux") / "initrd"
    path.write_bytes(linux.initramfs())
    return path


def logged(text: str) -> list[str]:
    """Return the kernel's lines in a text, which may hold echoes of the input."""
    return re.findall(r"\[ *\d+\.\d{6}\] .*$", text.replace("\r", ""), re.MULTILINE)


def type_slowly(guest: Session) -> None:
    """Type during the whole boot."""
    for byte in TYPED:
        guest.type(bytes([byte]))
        time.sleep(0.1)


def boot_and_compare(command: list[str]) -> int:
    """Boot with the full log, compare, and return the number of lines."""
    with Session(command) as guest:
        typist = threading.Thread(target=type_slowly, args=(guest,))
        typist.start()
        console = guest.wait_for(
            b"-arm64 on "
        ).decode()  # init's first words; echoes may precede them
        typist.join()
        guest.wait_for(PROMPT)
        guest.type(ASKED)
        guest.wait_for(b"still 42\r\n" + PROMPT)
        truth = logged(guest.shell("dmesg"))
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0

    lines = logged(console)
    assert lines == truth[: len(lines)]
    return len(lines)


# Sent at once, before the emulated host has the command. Since Linux 6.5 a worker wakes an idle
# port to send, and a power-off does not wait for that worker.
COMMANDS = b"echo 0123456789abcdefghijklmnopqrstuvwxyz $((40 + 2)); sleep 1; poweroff -f"
SENT = COMMANDS + b"\n"
BOOT_S = 1200.0  # for one boot with 4 vCPUs on a busy machine
ANSWER = b"0123456789abcdefghijklmnopqrstuvwxyz 42\r\n"


def assert_shell_gets_all(command: list[str]) -> None:
    with Session(command) as guest:
        guest.type(SENT)
        printed = guest.wait_for(b"\n" + ANSWER, timeout_s=BOOT_S)
        assert guest.end() == 0
    assert COMMANDS + b"\r\n" in printed


@pytest.mark.matrix
@pytest.mark.parametrize("words", ["quiet", EARLYCON], ids=["quiet", "earlycon"])
def test_line_sent_before_the_boot_reaches_the_shell_whole(
    pyvmm_cmd: list[str], initrd: Path, words: str
) -> None:
    assert_shell_gets_all(command_for(pyvmm_cmd, initrd, "6.1", "-c", "2", "-p", words))


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("version", ["5.10", "6.1", "6.12", "7.2"])
def test_line_sent_before_the_boot_reaches_the_shell_whole_in_repeated_boots(
    pyvmm_cmd: list[str], initrd: Path, version: str, vcpus: int
) -> None:
    command = command_for(pyvmm_cmd, initrd, version, "-c", str(vcpus))
    for _ in range(10):
        assert_shell_gets_all(command)


def command_for(pyvmm_cmd: list[str], initrd: Path, version: str, *options: str) -> list[str]:
    words = [*pyvmm_cmd, "run", "-i", str(initrd), "-m", "256", "-p", "loglevel=8", *options]
    return [*words, str(linux.image(version))]


@pytest.mark.matrix
def test_boot_log_is_whole_with_input_during_the_boot(pyvmm_cmd: list[str], initrd: Path) -> None:
    compared = boot_and_compare(command_for(pyvmm_cmd, initrd, "6.1", "-c", "2"))

    assert compared > 150


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ["6.1", "7.2"])
@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("path", [[], ["--no-fast-mmio"]], ids=["fast", "plain"])
def test_boot_log_is_whole_every_time(
    pyvmm_cmd: list[str], initrd: Path, version: str, vcpus: int, path: list[str]
) -> None:
    command = command_for(pyvmm_cmd, initrd, version, "-c", str(vcpus), *path)

    compared = [boot_and_compare(command) for _ in range(TIMES if not path else 1)]

    assert min(compared) > 150
