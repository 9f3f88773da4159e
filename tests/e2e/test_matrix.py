"""Every kernel with every kind of host: `make test-matrix`, some twenty minutes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time

import pytest

from pyvmm.host.settings import KERNEL_SUITES
from tests.e2e import vls
from tests.e2e.conftest import FIRST_S, Pyvmm

HOUR_S = 3600
pytestmark = [pytest.mark.matrix, pytest.mark.timeout(HOUR_S)]

HOSTS = {
    "1 quadword": vls.ONE,
    "2 quadwords": vls.TWO,
    "4 quadwords": vls.FOUR,
    "16 quadwords": vls.SIXTEEN,
    "a hole": vls.HOLE,
    "no SVE": vls.NONE,
}


@pytest.mark.parametrize("kernel", KERNEL_SUITES)
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_host_gives_every_legal_set_and_refuses_every_other(
    kernel: str, host: vls.Host, pyvmm: Pyvmm
) -> None:
    where = ("--host-kernel", kernel)
    started = time.monotonic()
    pyvmm("host", "start", "--host-cpu", host.cpu, *where, timeout=FIRST_S)
    up = time.monotonic()

    try:
        legal = vls.check_legal(pyvmm, host, *where)
        illegal = vls.check_illegal(pyvmm, host, *where)
        illegal += vls.check_nonsense(pyvmm, host, *where)
    finally:
        pyvmm("host", "rm", "--host-cpu", host.cpu, *where)

    print(f"\nLinux {kernel}, -cpu {host.cpu}: {legal} legal sets run, {illegal} others refused; "
          f"host {up - started:.0f} s, sets {time.monotonic() - up:.0f} s")  # fmt: skip


# Tests that skip on the default host, and the hosts on which they run
ELSEWHERE = {
    "ID registers, Linux 6.12": ("machine/test_idregs.py", {"KERNEL": "6.12"}),
    "ID registers, Linux 7.2": ("machine/test_idregs.py", {"KERNEL": "7.2"}),
    "LPA2, Linux 6.12": (
        "kvm/test_translation.py",
        {"CPU": "max,lpa2=on", "QEMU": "10", "KERNEL": "6.12"},
    ),
    "LPA2, Linux 7.2": (
        "kvm/test_translation.py",
        {"CPU": "max,lpa2=on", "QEMU": "10", "KERNEL": "7.2"},
    ),
    "no SVE": ("kvm/test_sve.py", {"CPU": vls.NONE.cpu}),
}
# What such a host may skip too
MAY_SKIP = {
    "kvm/test_sve.py": {"this host has no SVE"},
    "machine/test_idregs.py": {"this kernel fixes MIDR_EL1: KVM changes it since Linux 6.15"},
}


@pytest.mark.parametrize(("file", "host"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_kvm_tests_that_the_default_host_skips_pass_elsewhere(
    file: str, host: dict[str, str]
) -> None:
    environment = {f"PYVMM_HOST_{name}": value for name, value in host.items()}

    done = subprocess.run(
        [sys.executable, "-m", "tests.in_host", f"tests/{file}", "-rs"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    skipped = set(re.findall(r"SKIPPED .*: (.*)", done.stdout))
    assert skipped <= MAY_SKIP.get(file, set())
    assert " passed" in done.stdout


def test_megabytes_of_output_arrive_whole_and_in_order(pyvmm: Pyvmm) -> None:
    size = 200_000

    done = pyvmm("run", "exit", "-p", f"flood={size}", timeout=FIRST_S)

    lines = "".join(f"{at:015} {0:047}\n" for at in range(0, size, 64))
    assert done.stdout == lines[:size]
    assert (done.stderr, done.returncode) == ("", 0)


def test_megabytes_of_input_come_back_unchanged(pyvmm: Pyvmm) -> None:
    text = b"".join(b"%099d\n" % n for n in range(1_000))

    done = subprocess.run(
        [*pyvmm.command, "run", "echo"],
        input=text + b"quit\n",
        capture_output=True,
        timeout=FIRST_S,
    )

    sent, back = (hashlib.sha256(data).digest() for data in (text, done.stdout[: len(text)]))
    assert back == sent
    assert done.returncode == 0
