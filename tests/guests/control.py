"""Checks of a Linux guest that another command controls: pause, registers, sysrq."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Callable

from tests.linux import Session

Tell = Callable[..., str]

PAUSE_S = 6.0
TICKER = "(while sleep 1; do cut -d' ' -f1 /proc/uptime >>/ticks; done) &"


def uptime(guest: Session) -> float:
    return float(guest.shell("cut -d' ' -f1 /proc/uptime"))


def real_time(guest: Session) -> int:
    return int(guest.shell("cat /sys/class/rtc/rtc0/since_epoch"))


def check_control(guest: Session, command: list[str], name: str) -> None:
    """Check what pause, resume and debug do with a running guest of that name."""

    def tell(*words: str) -> str:
        done = subprocess.run(
            [*command, *words, "-n", name], check=True, capture_output=True, text=True
        )
        return done.stdout

    check_that_no_time_passes_in_a_pause(guest, tell)
    check_that_registers_are_those_of_a_kernel(tell)
    check_that_a_sysrq_arrives(guest, tell)


def check_that_registers_are_those_of_a_kernel(tell: Tell) -> None:
    (vm,) = json.loads(tell("debug", "-d", "--json"))["vms"]

    for vcpu in vm["vcpus"]:
        registers = {name: int(value, 16) for name, value in vcpu["registers"].items()}
        assert registers["VBAR_EL1"] >> 48 == 0xFFFF  # the kernel's half of the addresses
        assert registers["SCTLR_EL1"] & 1  # the MMU is on
        assert registers["MPIDR_EL1"] & 0xFF == vcpu["vcpu"]


def check_that_a_sysrq_arrives(guest: Session, tell: Tell) -> None:
    tell("debug", "-s", "h")

    guest.wait_for(b"sysrq: HELP")


def check_that_no_time_passes_in_a_pause(guest: Session, tell: Tell) -> None:
    guest.shell(TICKER)
    guest.shell("sleep 3")
    rtc = real_time(guest)
    began = time.monotonic()
    before = uptime(guest)

    tell("pause")
    time.sleep(PAUSE_S)
    tell("resume")
    guest.shell("sleep 3")
    after, passed_s = uptime(guest), time.monotonic() - began

    ticks = [float(line) for line in guest.shell("cat /ticks").split()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(ticks)]
    assert 3 <= after - before < passed_s - PAUSE_S + 0.1  # uptime has two digits
    assert len(ticks) > 4
    assert max(gaps) < PAUSE_S, gaps  # more, if the guest had seen the pause
    assert real_time(guest) - rtc >= PAUSE_S
    assert guest.shell("dmesg | grep -ciE 'stall|lockup|hung|unstable'") == "0"
