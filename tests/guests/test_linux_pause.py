"""A paused Linux guest: no time passes by its clocks, and its timers go on as if nothing was."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import linux
from tests.linux import PROMPT, Session

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PAUSE_S = 10.0
NAME = "paused-linux"
TICKER = "(while sleep 1; do cut -d' ' -f1 /proc/uptime >>/ticks; done) &"


@pytest.fixture
def guest(pyvmm_cmd: list[str], tmp_path: Path) -> Iterator[Session]:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(linux.initramfs())
    machine = ["--name", NAME, "-c", "2", "-m", "256", "-i", str(initrd), "-pquiet"]
    with Session([*pyvmm_cmd, "run", *machine, str(linux.image("6.1"))]) as session:
        session.wait_for(PROMPT)
        yield session


def uptime(guest: Session) -> float:
    return float(guest.shell("cut -d' ' -f1 /proc/uptime"))


def real_time(guest: Session) -> int:
    return int(guest.shell("cat /sys/class/rtc/rtc0/since_epoch"))


def test_clocks_and_timers_behave_when_a_pause_is_over(
    guest: Session, pyvmm_cmd: list[str]
) -> None:
    guest.shell(TICKER)
    guest.shell("sleep 3")
    rtc = real_time(guest)
    before, began = uptime(guest), time.monotonic()

    subprocess.run([*pyvmm_cmd, "pause", "-n", NAME], check=True, capture_output=True)
    time.sleep(PAUSE_S)
    subprocess.run([*pyvmm_cmd, "resume", "-n", NAME], check=True, capture_output=True)
    guest.shell("sleep 3")
    after, passed_s = uptime(guest), time.monotonic() - began

    ticks = [float(line) for line in guest.shell("cat /ticks").split()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(ticks)]
    assert 3 <= after - before < passed_s - PAUSE_S + 0.5
    assert len(ticks) > 4
    assert max(gaps) < PAUSE_S / 2, gaps
    assert real_time(guest) - rtc >= PAUSE_S
    assert guest.shell("dmesg | grep -ciE 'stall|lockup|hung|unstable'") == "0"
