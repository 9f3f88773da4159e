"""Repeated saves and restores, each in a new process, on every kernel."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import FIRST_S, Pyvmm

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.matrix,
    pytest.mark.timeout(3600),
    pytest.mark.usefixtures("emulated"),
]

CYCLES = int(os.environ.get("PYVMM_TEST_CYCLES", "100"))
LENGTHS = {128: "128", 256: "128,256", 512: "128,256,512", 1024: "128,256,512,1024",
           2048: "128,256,512,1024,2048"}  # fmt: skip
TIMED_OUT = 124
KERNELS = ("6.1", "6.12", "7.2")
MACHINE = ("-c", "2", "-m", "16", "-p", "patience=30")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("longest", LENGTHS)
def test_sve_guest_survives_saves_and_restores(
    pyvmm: Pyvmm, tmp_path: Path, kernel: str, longest: int
) -> None:
    host = ["--host-kernel", kernel]
    file = tmp_path / "guest.snap"
    span = ["--timeout", "0.2", "--save-on-exit", str(file)]
    machine = [*MACHINE, f"--sve-vls={LENGTHS[longest]}"]
    first = ["--timeout", "5", "--save-on-exit", str(file)]  # time to print that it runs
    begun = pyvmm("run", *host, *machine, *first, "sve-snapshot", timeout=FIRST_S)
    assert begun.returncode == TIMED_OUT, begun.stderr

    again = ("host", "exec", *host, "--", "python3", "-m", "tests.e2e.again")
    done = pyvmm(*again, str(CYCLES), str(TIMED_OUT), "restore", *span, str(file), timeout=3000)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    last = pyvmm("restore", *host, str(file), input="cssssq")

    assert last.returncode == 0, last.stdout
    assert "failures=0" in last.stdout
    assert f" vl={longest}\n" in last.stdout
    rounds = re.findall(r"^vCPU 0: on rounds=(\d+) ", last.stdout, re.MULTILINE)
    print(f"Linux {kernel}, {longest} bits: {rounds[-1]} rounds over {CYCLES} saves and restores")
    assert int(rounds[-1]) > CYCLES  # it made progress each time


@pytest.mark.parametrize(("taken_on", "restored_on"), list(itertools.permutations(KERNELS, 2)))
def test_sve_guest_continues_under_another_kernel(
    pyvmm: Pyvmm, tmp_path: Path, taken_on: str, restored_on: str
) -> None:
    file = tmp_path / "guest.snap"
    begun = pyvmm("run", "--host-kernel", taken_on, *MACHINE, "--pmu", "--timeout", "3",
                  "--save-on-exit", str(file), "sve-snapshot", timeout=FIRST_S)  # fmt: skip
    assert begun.returncode == TIMED_OUT, begun.stderr

    check = pyvmm("snapshot", "check", str(file), "--host-kernel", restored_on, timeout=FIRST_S)
    print(check.stdout)
    plain = pyvmm("restore", str(file), "--host-kernel", restored_on, "--timeout", "1")
    forced = pyvmm("restore", str(file), "--host-kernel", restored_on, "--force", input="cssssq")

    # restore does what check says, and names each lost register.
    assert check.returncode in (0, 1)
    assert plain.returncode == (TIMED_OUT if check.returncode == 0 else 3), plain.stderr
    assert forced.returncode == 0, forced.stdout + forced.stderr
    assert "failures=0" in forced.stdout
    lost = [line.split()[0] for line in check.stdout.splitlines()[7:]]
    said = [line for line in forced.stderr.splitlines() if "not as it was saved: " in line]
    assert all(any(re.search(rf"\b{name}\b", line) for line in said) for name in lost)
    assert sum("harmless" in line for line in said) <= 1


def test_restore_refuses_a_set_that_lacks_a_length_of_the_host(
    pyvmm: Pyvmm, tmp_path: Path
) -> None:
    file = tmp_path / "guest.snap"
    holed = ["--host-cpu", "max,sve512=on,sve384=off"]
    full = ["--host-cpu", "max,sve-max-vq=4"]
    begun = pyvmm("run", *holed, *MACHINE, "--sve-vls=128,256,512", "--timeout", "2",
                  "--save-on-exit", str(file), "sve-snapshot", timeout=FIRST_S)  # fmt: skip
    assert begun.returncode == TIMED_OUT, begun.stderr
    (tmp_path / "full.json").write_text(pyvmm("doctor", "--json", *full, timeout=FIRST_S).stdout)

    here = pyvmm("snapshot", "check", str(file), *full)
    there = pyvmm("snapshot", "check", str(file), "--on", str(tmp_path / "full.json"))
    restored = pyvmm("restore", str(file), *full, "--force")

    for check in (here, there):
        assert check.returncode == 1
        assert re.search(r"^SVE +impossible +.*384 is left out", check.stdout, re.MULTILINE)
    assert restored.returncode == 3
    assert "384 is left out" in restored.stderr
    assert restored.stdout == ""
    assert pyvmm("restore", str(file), *holed, input="sq").returncode == 0
