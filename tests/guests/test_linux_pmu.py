"""The performance monitor of a Linux guest: cycles, and the interrupt of a counter's overflow."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import linux
from tests.linux import PROMPT, Session

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(900)]

SOURCE = Path(__file__).with_name("perf.c")
PERIOD = 1_000_000  # cycles from one interrupt to the next, as in perf.c


@pytest.fixture(scope="module")
def initrd(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an initramfs with the program."""
    directory = tmp_path_factory.mktemp("pmu")
    program = directory / "perf"
    options = ["-O2", "-Wall", "-Werror", "-static", "-o", str(program), str(SOURCE)]
    subprocess.run([str(cross_gcc), *options], check=True)
    path = directory / "initrd"
    path.write_bytes(linux.initramfs({"bin/perf": program.read_bytes()}))
    return path


def overflows(said: str, when: str) -> int:
    """Return the number of the PMU's interrupts in a line of /proc/interrupts."""
    rows = re.findall(rf"^{when}: +\d+: +((?:\d+ +)+)GIC", said, re.MULTILINE)
    assert rows, said
    return sum(int(count) for row in rows for count in row.split())


@pytest.mark.parametrize("host", ["6.1", "6.12", "7.2"], indirect=True)
def test_linux_counts_cycles_and_takes_the_overflow_interrupts(
    host: list[str], pyvmm_cmd: list[str], initrd: Path
) -> None:
    command = [*pyvmm_cmd, "run", *host, "--pmu", "-c", "2", "-m", "256", "-i", str(initrd)]

    with Session([*command, "-pquiet", str(linux.image("6.1"))]) as guest:
        guest.wait_for(PROMPT, timeout_s=600)
        assert "counters available" in guest.shell("dmesg | grep hw.perfevents")
        said = guest.shell("perf")
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0

    cycles = re.search(r"^cycles: (\d+)$", said, re.MULTILINE)
    assert cycles, said
    assert int(cycles[1]) > 10 * PERIOD
    assert overflows(said, "after") - overflows(said, "before") > 2


@pytest.mark.parametrize("host", ["6.1"], indirect=True)
def test_linux_has_no_performance_monitor_by_default(
    host: list[str], pyvmm_cmd: list[str], initrd: Path
) -> None:
    command = [*pyvmm_cmd, "run", *host, "-c", "1", "-m", "256", "-i", str(initrd)]

    with Session([*command, "-pquiet", str(linux.image("6.1"))]) as guest:
        guest.wait_for(PROMPT, timeout_s=600)
        assert "perf_event_open: " in guest.shell("perf 2>&1")
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0
