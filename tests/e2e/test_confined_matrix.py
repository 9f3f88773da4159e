"""Confined VMs and confined hosts on every kernel and QEMU: what an escape gets, and what works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host.confined import launch
from pyvmm.host.settings import KERNEL_SUITES, QEMU_SUITES
from tests.e2e.conftest import FIRST_S, Pyvmm

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(3600)]

# Kernel -> the Landlock ABI that it has at least; 0: none
ABIS = {"5.10": 0, "6.1": 2, "6.12": 6, "7.2": 7}
WITHOUT = "the VM is less confined: the kernel has "
NEVER_BUILT = f"{WITHOUT}no Landlock: Linux 5.13 and later can have it"
LEFT_OUT = f"{WITHOUT}Landlock, but its `lsm=` parameter leaves it out"
# Tests of a confined VM's own work; `-m e2e` selects also those marked `matrix`
WORK = {
    "trace": ["tests/e2e/test_trace.py"],
    "save, restore": ["tests/e2e/test_snapshots.py"],
    "pause, debug, stop, --reboot": ["tests/e2e/test_control.py"],
    "ptys": ["tests/e2e/test_ttys.py"],
    "balloon, hotplug": ["tests/guests/test_linux_memory.py", "-k", "memory_of"],
    "disk": ["tests/guests/test_disk_linux.py", "-k", "file_systems"],
    "disk, save": ["tests/guests/test_disk_linux.py", "-m", "e2e", "-k", "saved_during_writes"],
    "console": ["tests/guests/test_linux_terminal.py", "tests/guests/test_virtio_console.py"],
}
HOSTS = [
    *({"PYVMM_HOST_KERNEL": kernel} for kernel in KERNEL_SUITES),
    *({"PYVMM_HOST_QEMU": version} for version in QEMU_SUITES),
]


def output(command: list[str], **environment: str) -> str:
    """Return the output of a command that must succeed."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("kernel", ABIS)
def test_escape_is_refused_everything_on_each_kernel(kernel: str) -> None:
    tests = ["tests/sandbox/test_confine.py", "tests/commands/test_confined.py"]
    command = [sys.executable, "-m", "tests.in_host", *tests, "-m", "not e2e", "-rs"]

    said = output(command, PYVMM_HOST_KERNEL=kernel)

    skipped = set(re.findall(r"^SKIPPED .*?: (.*)$", said, re.MULTILINE))
    assert skipped == (set() if ABIS[kernel] else {"this kernel has no Landlock"})
    assert " passed" in said


@pytest.mark.parametrize(
    ("irqchip", "environment"),
    [("gicv3", {}), ("gicv3-its", {}), ("gicv2", {"PYVMM_HOST_MODEL": "gicv2"})],
)
def test_mutated_states_are_restored_or_refused(irqchip: str, environment: dict[str, str]) -> None:
    test = f"test_restore_runs_or_refuses_any_mutated_state[{irqchip}-200]"
    tests = [f"tests/snapshot/test_mutants_restored.py::{test}", "-m", "kvm and matrix"]

    said = output([sys.executable, "-m", "tests.in_host", *tests], **environment)

    assert "1 passed" in said


@pytest.mark.parametrize("kernel", ABIS)
def test_run_says_what_confines_it_on_each_kernel(kernel: str, pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "exit", "-v", "--host-kernel", kernel, timeout=FIRST_S)

    (line,) = re.findall(r"^pyvmm: confined (.*)$", done.stderr, re.MULTILINE)
    assert "no capabilities" in line and re.search(r"seccomp \(\d+ system calls\)", line)
    (abi,) = re.findall(r"Landlock ABI (\d+)", line) or ["0"]
    assert (int(abi) >= ABIS[kernel], bool(int(abi))) == (True, bool(ABIS[kernel]))
    assert (f"pyvmm: {NEVER_BUILT}" in done.stderr) == (ABIS[kernel] == 0)


def test_run_says_that_the_kernel_leaves_landlock_out(pyvmm: Pyvmm) -> None:
    where = ("--host-append", "lsm=capability")

    done = pyvmm("run", "exit", "-p", "exit=7", *where, timeout=FIRST_S)
    pyvmm("host", "rm", *where)

    assert done.returncode == 7
    assert done.stderr.splitlines()[-2:] == [
        f"pyvmm: {LEFT_OUT}",
        "  hint: `pyvmm doctor` shows the remedy",
    ]


@pytest.mark.parametrize("kernel", [kernel for kernel in ABIS if kernel != "5.10"])
@pytest.mark.parametrize("tests", WORK.values(), ids=WORK)
def test_confined_vm_does_its_own_work_on_each_kernel(kernel: str, tests: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "e2e and not matrix", "-q", *tests]

    said = output(command, PYVMM_HOST_KERNEL=kernel)

    assert " passed" in said and " skipped" not in said


@pytest.fixture
def host(
    request: pytest.FixtureRequest, pyvmm: Pyvmm, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Make a host with the settings of the parameter the default one; yield its name for people."""
    if (reason := launch.refusal()) is not None:
        pytest.skip(f"this machine cannot confine QEMU: {reason}")
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    assert pyvmm("host", "start", timeout=FIRST_S).returncode == 0
    yield " ".join(request.param.values())
    pyvmm("host", "stop")


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: "-".join(host.values()), indirect=True)
def test_confined_host_runs_saves_restores_and_has_a_shell(
    host: str, pyvmm: Pyvmm, tmp_path: Path
) -> None:
    file, disk = tmp_path / "a.snap", tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    (row,) = pyvmm.hosts()
    with pyvmm.start("run", "exit", "-p", "spin", "--name", "it", "-d", str(disk)) as process:
        assert process.stdout is not None and process.stdout.readline() == b"spinning\n"
        saved = pyvmm("save", "it", str(file))
        assert process.wait(FIRST_S) == 0
    restored = pyvmm("restore", str(file), "--timeout", "1")
    shell = pyvmm("host", "shell", input=f"cat {disk} | wc -c; exit 5\n")

    assert (row["confined"], row["sandbox"]) == (True, True)
    assert saved.returncode == 0, saved.stderr
    assert restored.returncode == 124, restored.stderr
    assert ("4096" in shell.stdout, shell.returncode) == (True, 5), shell.stderr
