"""Guests that never get going: one line on stderr, which is true."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import programs
from tests.e2e.conftest import FIRST_S, Done, Pyvmm
from tests.tty import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

QEMUS_UART = r"where QEMU's virt machine has its UART; here it is at 0x1000000"
SURE = {
    "undefined": r"vCPU 0 faults for ever at 0x200: it has no exception vectors .*",
    "zeros for vectors": r"vCPU 0 faults for ever at 0x80080200, in its exception vectors: "
    "unknown reason, as for an undefined instruction",
    "hang in a vector": r"vCPU 0 stays at 0x80080200, in its exception vectors, after an "
    "exception at 0x8008001c: BRK #0x7",
    "poll QEMU's UART": rf"vCPU 0 polls 0x9000018, {QEMUS_UART}",
    "print to QEMU's UART": rf"vCPU 0 accessed 0x9000000, {QEMUS_UART}",
    "switch off": "every vCPU is off by PSCI",
    "wait": r"vCPU 0 waits in WFI with no interrupt enabled \(PC 0x80080004\)",
}
NOTHING = "the guest has printed nothing: vCPU 0"
NEUTRAL = {
    "spin": rf"{NOTHING} runs at PC 0x80080000 without an exit",
    "count": rf"{NOTHING} runs at PC 0x8008000[04] without an exit",
    "wait for a timer": rf"{NOTHING} waits for an interrupt at PC 0x80080018",
    "wait for input": rf'{NOTHING} runs at PC 0x8008000[48], most of its exits are "uart0 read"',
}


Ended = Mapping[str, Done]


@pytest.fixture(scope="module")
def ended(emulated: None, pyvmm: Pyvmm, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Run each program until its timeout, three at a time: most of that time is waiting."""
    directory = tmp_path_factory.mktemp("stuck")

    def run(program: str, *options: str) -> Done:
        return pyvmm("run", "-c1", "-m16", *options, str(programs.write(program, directory)))

    with ThreadPoolExecutor(3) as pool:
        # Longer than pyvmm waits before it looks.
        running = {program: pool.submit(run, program, "--timeout", "8") for program in NEUTRAL}
        running |= {program: pool.submit(run, program, "--timeout", "2") for program in SURE}
        return {program: done.result() for program, done in running.items()}


def line(done: Done) -> str:
    """Return the line on stderr of a guest that its timeout ended, before the last."""
    said, last = done.stderr.splitlines()

    assert (done.stdout, done.returncode) == ("", 124), done.stderr
    assert last.startswith("pyvmm: the guest did not end within ")
    return said


@pytest.mark.parametrize("program", SURE)
def test_timeout_reports_why_a_guest_is_stuck(program: str, ended: Ended) -> None:
    said = line(ended[program])

    assert re.fullmatch(f"pyvmm: {SURE[program]}", said), said


def test_access_without_a_device_is_reported_when_python_handles_it(
    pyvmm: Pyvmm, tmp_path: Path
) -> None:
    image = programs.write("poll QEMU's UART", tmp_path)

    said = line(pyvmm("run", "-c1", "-m16", "--timeout", "2", "--no-fast-mmio", str(image)))

    assert re.fullmatch(f"pyvmm: {SURE[image.name]}", said), said


def test_run_reports_once_and_early_why_a_guest_is_silent(pyvmm: Pyvmm, tmp_path: Path) -> None:
    image = programs.write("undefined", tmp_path)
    command = ("run", "-c1", "-m16", "--timeout", "15", str(image))

    with pyvmm.start(*command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        assert process.poll() is None
        rest = process.stderr.read().decode()

    assert re.fullmatch(f"pyvmm: {SURE[image.name]}\n", said)
    assert rest == "pyvmm: the guest did not end within 15 s\n"


@pytest.mark.parametrize("program", NEUTRAL)
def test_run_reports_nothing_when_a_silent_guest_works_or_waits(program: str, ended: Ended) -> None:
    """Only the timeout describes it."""
    said = line(ended[program])

    assert re.fullmatch(f"pyvmm: {NEUTRAL[program]}", said), said


@pytest.mark.parametrize(
    ("program", "words"), [("undefined", b"faults for ever"), ("spin", b"without an exit")]
)
def test_ctrl_a_x_reports_why_a_guest_is_silent(
    program: str, words: bytes, pyvmm: Pyvmm, tmp_path: Path
) -> None:
    image = programs.write(program, tmp_path)
    with Terminal() as terminal:
        process = terminal.start([*pyvmm.command, "run", "-v", "-c1", "-m16", str(image)])
        terminal.expect(b"sve  ")
        terminal.wait_for_raw_mode()

        terminal.type(b"\x01x")

        terminal.expect(words)
        assert terminal.wait(process) == 0


def test_store_without_a_syndrome_names_device_address_and_instruction(
    pyvmm: Pyvmm, tmp_path: Path
) -> None:
    done = pyvmm("run", str(programs.write("store of a structure", tmp_path)))

    assert done.returncode == 1
    assert "vCPU 0 at PC 0x80080010 accessed uart0 at 0x1000000, " in done.stderr
    assert "does not emulate `a SIMD load or store of structures (0x4c007800)`" in done.stderr
