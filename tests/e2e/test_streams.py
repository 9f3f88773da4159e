"""Input and output of a guest."""

from __future__ import annotations

import random
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import ENOUGH_S, FIRST_S, Pyvmm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

SIZE = 3_000  # bytes of input: a UART of an emulated host is slow


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of lines of random printable bytes that ends with `quit`."""
    rng = random.Random(7)
    text = bytearray()
    while len(text) < SIZE:
        text += bytes(rng.choices(range(0x20, 0x7F), k=rng.randrange(200))) + b"\n"
    path = tmp_path_factory.mktemp("typed") / "lines"
    path.write_bytes(text + b"quit\n")
    return path


def test_input_from_a_file_comes_back_unchanged(typed: Path, pyvmm: Pyvmm) -> None:
    with typed.open("rb") as file:
        done = subprocess.run(
            [*pyvmm.command, "run", "echo"], stdin=file, capture_output=True, timeout=ENOUGH_S
        )

    sent = typed.read_bytes().removesuffix(b"quit\n")
    summary = rb"echo: %d bytes, %d lines, \d+ interrupts\n" % (len(sent), sent.count(b"\n"))
    assert done.stdout[: len(sent)] == sent
    assert re.fullmatch(summary, done.stdout[len(sent) :])
    assert (done.stderr, done.returncode) == (b"", 0)


def test_input_from_a_pipe_comes_back_unchanged(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "echo", input="one\ntwo\nquit\nthree\n")

    assert done.stdout.startswith("one\ntwo\necho: 8 bytes, 2 lines, ")
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("after", ["x", "q", "\x01", "h"])
def test_escape_character_from_a_pipe_goes_to_the_guest(after: str, pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "echo", input=f"a\x01{after}b\nquit\n")

    assert done.stdout.startswith(f"a\x01{after}b\necho: 5 bytes, 1 lines, ")
    assert (done.stderr, done.returncode) == ("", 0)


def test_guest_runs_on_after_empty_input(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "echo", "--timeout", "1")

    assert (done.stdout, done.returncode) == ("", 124)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_stream_becomes_dev_null(closed: str, pyvmm: Pyvmm) -> None:
    command = shlex.join([*pyvmm.command, "run", "exit", "-p", "exit=7"])

    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"], capture_output=True, timeout=ENOUGH_S
    )

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 7)


@pytest.mark.parametrize("arguments", ["--version", "run --help", "host status --json"])
def test_full_standard_output_is_an_error(arguments: str, pyvmm: Pyvmm) -> None:
    command = f"{shlex.join(pyvmm.command)} {arguments}"

    done = subprocess.run(
        ["sh", "-c", f"{command} >/dev/full"], capture_output=True, text=True, timeout=ENOUGH_S
    )

    assert done.stderr == "pyvmm: cannot write standard output: No space left on device\n"
    assert done.returncode == 3


def test_flood_of_output_is_whole_and_in_order(pyvmm: Pyvmm) -> None:
    size = 10_000

    done = pyvmm("run", "exit", "-p", f"flood={size}")

    lines = "".join(f"{at:015} {0:047}\n" for at in range(0, size, 64))
    assert done.stdout == lines[:size]
    assert (done.stderr, done.returncode) == ("", 0)


def test_output_to_a_file_is_whole(pyvmm: Pyvmm, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        code = subprocess.run([*pyvmm.command, "run", "hello"], stdout=out).returncode

    assert (tmp_path / "out").read_bytes().startswith(b"Hello from EL1")
    assert code == 0


def test_output_that_cannot_be_written_is_an_error(pyvmm: Pyvmm) -> None:
    with Path("/dev/full").open("w") as full:
        done = pyvmm("run", "hello", capture_output=False, stdout=full, stderr=subprocess.PIPE)

    assert done.stderr == "pyvmm: cannot write the command's output: No space left on device\n"
    assert done.returncode == 3


def test_verbose_goes_to_standard_error(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "hello", "--verbose")

    assert done.stdout.startswith("Hello from EL1")
    assert re.search(r"^pyvmm: host .*QEMU [\d.]+ \(TCG\), -cpu max", done.stderr, re.MULTILINE)
    assert "128,256,512,1024,2048 bits" in done.stderr


def test_files_are_read_and_written_at_their_own_paths(pyvmm: Pyvmm, tmp_path: Path) -> None:
    guest = Path(__file__).parents[2] / "pyvmm/guests/hello"
    (tmp_path / "my guest").write_bytes(guest.read_bytes())

    done = pyvmm("run", "./my guest", "--dump-dtb", "my.dtb", cwd=tmp_path)

    assert done.stdout.startswith("Hello from EL1"), done.stderr
    assert (tmp_path / "my.dtb").read_bytes().startswith(b"\xd0\x0d\xfe\xed")
