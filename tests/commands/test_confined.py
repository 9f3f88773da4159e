"""An escape from a guest, in a vCPU's thread of a confined run, on a real KVM."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from pyvmm import cli
from pyvmm.base.computer import describe_inside
from pyvmm.commands._attached import Extras, run_attached
from pyvmm.commands.run import GUESTS
from pyvmm.config import Config
from pyvmm.devices.exit import ExitRegister
from pyvmm.machine.machine import Machine
from pyvmm.sandbox.confine import confine
from tests.sandbox.attempts import BY_LANDLOCK
from tests.sandbox.escape import has_landlock, in_child, refused, without_landlock

pytestmark = pytest.mark.kvm

DENIED = ("Operation not permitted", "Permission denied")


@pytest.mark.parametrize("sandbox", [True, False])
def test_vcpu_thread_is_refused_everything(
    sandbox: bool, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "id"
    secret.write_bytes(b"secret")
    found: dict[str, str | None] = {}
    write = ExitRegister.mmio_write

    def escape(device: ExitRegister, offset: int, length: int, value: int) -> None:
        if sandbox:
            found.update(refused(secret))
        else:
            found["read"] = str(secret.read_bytes())
        write(device, offset, length, value)

    monkeypatch.setattr(ExitRegister, "mmio_write", escape)
    config = Config(image=GUESTS / "exit", vcpus=1, params="exit=7", timeout_s=60)

    def run() -> object:
        return run_attached(config, Extras(sandbox=sandbox)), found

    code, found = in_child(run)

    assert code == 7
    if sandbox:
        allowed = frozenset() if has_landlock() else BY_LANDLOCK
        assert {name for name, error in found.items() if error not in DENIED} <= allowed
        assert allowed or secret.read_bytes() == b"secret"
    else:
        assert found == {"read": "b'secret'"}


RUN = ["run", "exit", "-c1", "-m16"]


@pytest.mark.skipif(describe_inside() is None, reason="core_pattern belongs to all of this machine")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root sets core_pattern")
def test_core_goes_to_no_program() -> None:
    """Without confinement a limit of 0 bytes prevents a file, and no program."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before, cores = pattern.read_text(), Path("/run/pyvmm-test-cores")
    cores.mkdir()

    def crash(confined: bool) -> str:
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
            if confined:
                confine(Config(image=Path("guest")))
            signal.signal(signal.SIGQUIT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGQUIT)
        os.waitpid(pid, 0)
        return str(pid)

    try:
        pattern.write_text(f"|/usr/bin/busybox touch {cores}/%p")
        crash(confined=True)
        free = crash(confined=False)
        deadline = time.monotonic() + 60
        while not list(cores.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        found = [path.name for path in cores.iterdir()]
    finally:
        pattern.write_text(before)
        shutil.rmtree(cores)

    assert found == [free]


def no_new_privileges() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("NoNewPrivs:")).split()[1]


@pytest.mark.parametrize(
    ("options", "owns_process", "confined"),
    [([], True, "1"), ([], False, "0"), (["--no-sandbox"], True, "0")],
    ids=["process of its own", "another program", "--no-sandbox"],
)
def test_command_confines_only_a_process_of_its_own(
    options: list[str], owns_process: bool, confined: str, own: Path
) -> None:
    def work() -> list[object]:
        return [cli.main([*RUN, *options], owns_process=owns_process), no_new_privileges()]

    assert in_child(work) == [0, confined]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_run_without_landlock_says_so(
    code: int, own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> list[object]:
        without_landlock(code)
        return [cli.main([*RUN, "-p", "exit=7"], owns_process=True), no_new_privileges()]

    assert in_child(work) == [7, "1"]
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("pyvmm: the VM is less confined: the kernel has ")
    assert said[1:] == ["  hint: `pyvmm doctor` shows the remedy"]


def test_tree_of_the_newest_machine_is_dumped(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob, made = tmp_path / "tree.dtb", []

    def tree(machine: Machine) -> bytes:
        """Return a tree of its own for each machine, and end the third."""
        made.append(machine)
        if len(made) == 3:
            machine.stop(9)
        return f"tree {len(made)}".encode()

    monkeypatch.setattr(Machine, "dtb", property(tree))

    def work() -> list[object]:
        dump = ["--reboot", "--timeout=60", f"--dump-dtb={blob}"]
        code = cli.main([*RUN, "-p", "reset", *dump], owns_process=True)
        return [code, no_new_privileges()]

    assert in_child(work) == [9, "1"]
    assert blob.read_bytes() == b"tree 3"
