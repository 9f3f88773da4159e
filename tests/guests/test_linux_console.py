"""A Linux guest's whole boot log by the UART's fast path, with input typed meanwhile.

What the console shows is held against what the kernel says it has printed: the guest's dmesg.
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

# Typed all along. Linux drops what comes before its driver has the port, and a shell what comes
# before it reads, as on real hardware: so the line is wiped, and asked again at the prompt.
TYPED = b"typed while it boots " * 4
ASKED = b"\x15echo still $((40 + 2))\n"
TIMES = 20


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linux") / "initrd"
    path.write_bytes(linux.initramfs())
    return path


def logged(text: str) -> list[str]:
    """The kernel's lines in a text; what was typed may be echoed between them."""
    return re.findall(r"\[ *\d+\.\d{6}\] .*$", text.replace("\r", ""), re.MULTILINE)


def type_slowly(guest: Session) -> None:
    """Type for as long as a boot takes, or longer."""
    for byte in TYPED:
        guest.type(bytes([byte]))
        time.sleep(0.1)


def boot_and_compare(command: list[str]) -> int:
    """Boot with the full log; how many of its lines were compared."""
    with Session(command) as guest:
        typist = threading.Thread(target=type_slowly, args=(guest,))
        typist.start()
        console = guest.wait_for(b"-arm64 on ").decode()  # of init's words; echoes may be before
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


def command_for(pyvmm_cmd: list[str], initrd: Path, version: str, *options: str) -> list[str]:
    words = [*pyvmm_cmd, "run", "-i", str(initrd), "-m", "256", "-p", "loglevel=8", *options]
    return [*words, str(linux.image(version))]


@pytest.mark.matrix
def test_boot_log_is_whole_with_input_meanwhile(pyvmm_cmd: list[str], initrd: Path) -> None:
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
