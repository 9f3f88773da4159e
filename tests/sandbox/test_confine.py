"""A confined process, on this machine's kernel; /proc is the oracle of what it has lost."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.config import Config, Disk
from pyvmm.errors import VmmError
from pyvmm.sandbox import landlock, program, seccomp
from pyvmm.sandbox.confine import confine
from pyvmm.sandbox.landlock import Rule
from tests.sandbox import bpf
from tests.sandbox.attempts import BY_LANDLOCK, Attempts
from tests.sandbox.escape import (
    attempts,
    has_landlock,
    in_child,
    in_thread,
    outcomes,
    refused,
    without_landlock,
)

# What a free process may do everywhere, so that the test can fail
HARMLESS = (
    "read", "list", "unix socket", "socketpair", "signal by F_SETOWN", "chmod of an open file",
    "O_ASYNC, which signals a terminal's processes", "personality", "inotify_init1", "pidfd_open",
    "kill the group", "setuid",
)  # fmt: skip
MACHINE = os.uname().machine
# uretprobe and uprobe, which filters do not see.  Source: Linux, kernel/seccomp.c, since v6.14
UNFILTERED = (335, 336) if MACHINE == "x86_64" else ()
DENIED = ("Operation not permitted", "Permission denied")


def has_seccomp() -> bool:
    return os.uname().machine == program.MACHINE and seccomp.has_filters()


needs_landlock = pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
needs_seccomp = pytest.mark.skipif(not has_seccomp(), reason="seccomp cannot be used here")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "id"
    path.parent.mkdir()
    path.write_bytes(b"secret")
    return path


def confined(work: Any, *, rules: Iterable[Rule] = (), **options: Any) -> Any:
    """Return the result of work in a confined process."""
    config = options.pop("config", Config(image=Path("guest")))

    def child() -> Any:
        confine(config, rules=rules, **options)
        return work()

    return in_child(child)


@needs_landlock
@needs_seccomp
@pytest.mark.parametrize("where", [lambda work: work(), in_thread], ids=["main", "thread"])
def test_escape_is_refused_everything(where: Any, secret: Path) -> None:
    free = in_child(lambda: outcomes({name: attempts(secret)[name] for name in HARMLESS}))
    found = confined(lambda: where(lambda: refused(secret)))

    assert [name for name, error in free.items() if error is not None] == []
    assert {name for name, error in found.items() if error not in DENIED} == set()
    assert secret.read_bytes() == b"secret"
    assert list(secret.parent.iterdir()) == [secret]


@needs_seccomp
def test_kernel_refuses_every_call_that_the_table_lacks() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = [ctypes.c_ulong(2**64 - 1)] * 6
    wanted = [
        number for number in range(600)
        if bpf.decision(program.CODE, MACHINE, number, *[2**64 - 1] * 6) == bpf.REFUSED
        and number not in UNFILTERED
    ]  # fmt: skip

    def work() -> list[int]:
        assert status("Seccomp") == "2"
        made = []
        for number in wanted:
            if libc.syscall(number, *nothing) != -1 or ctypes.get_errno() != errno.EPERM:
                made.append(number)
        return made

    assert len(wanted) > 300
    assert confined(work) == []


@needs_seccomp
def test_escape_without_landlock_is_refused_all_but_files(
    secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> int:
        raise landlock.Absent("none here")

    monkeypatch.setattr(landlock, "abi", absent)

    found = confined(lambda: refused(secret))
    lacks = in_child(lambda: str(confine(Config(image=Path("guest")))))

    assert {name for name, error in found.items() if error is None} <= BY_LANDLOCK
    assert lacks.endswith("no capabilities; less confined: none here")


@needs_landlock
@pytest.mark.parametrize(
    ("name", "value", "lacks"),
    [
        ("program.MACHINE", "vax", f"pyvmm has a seccomp filter for vax, and this is {MACHINE}"),
        ("seccomp.NUMBERS", {MACHINE: -1}, "the kernel has no seccomp filters"),
    ],
)
def test_missing_seccomp_is_said(
    name: str, value: object, lacks: str, monkeypatch: pytest.MonkeyPatch, secret: Path
) -> None:
    monkeypatch.setattr(f"pyvmm.sandbox.{name}", value)

    said = in_child(lambda: [str(confine(Config(image=Path("guest")))), try_to_read(secret)])

    assert said[0].endswith(f"less confined: {lacks}")
    assert said[1] == "Permission denied"


def try_to_read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        return str(error.strerror)


def status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{field}:")).split()[1]


def test_process_has_no_capabilities_and_gains_none() -> None:
    fields = ("CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs")

    found = confined(lambda: [status(field) for field in fields])

    assert found == ["0" * 16] * 4 + ["1"]


def test_process_leaves_no_core() -> None:
    assert confined(lambda: resource.getrlimit(resource.RLIMIT_CORE)) == [1, 1]


@needs_landlock
def test_only_files_with_a_rule_open(tmp_path: Path, secret: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image"
    for path in (disk, image):
        path.write_text(path.name)
    config = Config(image=image, devices=(Disk(path=disk, read_only=True),))

    def work() -> list[str]:
        return [try_to_read(disk), try_to_read(image), try_to_read(secret), write(disk)]

    def write(path: Path) -> str:
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError as error:
            return str(error.strerror)
        return ""

    no, ok = "Permission denied", ["disk", "image"]
    assert confined(work, config=config) == [no, no, no, "Operation not permitted"]
    assert confined(work, config=config, reboot=True) == [*ok, no, no]


@needs_landlock
@needs_seccomp
def test_file_with_a_rule_to_read_is_not_changed(tmp_path: Path) -> None:
    """Before Linux 6.2 Landlock has no right for O_TRUNC, which O_RDONLY may have, too."""
    module = tmp_path / "module.py"
    module.write_text("pass")
    fd = os.open(module, os.O_RDONLY)
    wanted: Attempts = {
        "write": lambda: os.open(module, os.O_RDWR),
        "truncate": lambda: os.open(module, os.O_RDONLY | os.O_TRUNC),
        "reopen": lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
        "reopen and truncate": lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_TRUNC),
        "chmod": lambda: os.fchmod(fd, 0o666),
        "read": lambda: os.open(module, os.O_RDONLY),
    }

    found = confined(lambda: outcomes(wanted), rules=[Rule(module, landlock.READ)])

    assert [name for name, error in found.items() if error not in DENIED] == ["read"]
    assert (module.read_text(), module.stat().st_mode & 0o002) == ("pass", 0)


@needs_seccomp
def test_own_work_goes_on(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)

    def work() -> list[object]:
        got: list[object] = []
        signal.signal(signal.SIGUSR1, lambda *_: got.append("signal"))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        os.pwrite(fd, b"data", 0)
        os.fdatasync(fd)
        time.sleep(0.001)
        import wave  # a module of the standard library that nothing has loaded

        return [*got, in_thread(lambda: os.pread(fd, 4, 0).decode()), wave.__name__]

    assert confined(work) == ["signal", "signal", "data", "wave"]


def test_process_with_threads_is_not_confined() -> None:
    def work() -> str:
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        try:
            confine(Config(image=Path("guest")))
        except VmmError as error:
            return error.message
        finally:
            release.set()
            thread.join()
        return ""

    assert in_child(work) == "the process has several threads: confine it before they start"


@needs_seccomp
@pytest.mark.parametrize(
    ("code", "lacks"),
    [
        (errno.ENOSYS, "the kernel has no Landlock: Linux 5.13 and later can have it"),
        (errno.EOPNOTSUPP, "the kernel has Landlock, but its `lsm=` parameter leaves it out"),
    ],
)
def test_kernel_without_landlock_is_said_and_the_rest_is_applied(
    code: int, lacks: str, secret: Path
) -> None:
    def work() -> list[object]:
        without_landlock(code)
        line = str(confine(Config(image=Path("guest"))))
        return [line, refused(secret), status("NoNewPrivs"), status("Seccomp")]

    line, found, no_new_privileges, filtered = in_child(work)

    assert re.fullmatch(rf"seccomp \(\d+ system calls\), .*; less confined: {lacks}", line)
    assert {name for name, error in found.items() if error is None} <= BY_LANDLOCK
    assert (no_new_privileges, filtered) == ("1", "2")


@needs_landlock
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the capability")
def test_capability_that_a_reboot_keeps_is_said() -> None:
    def work(reboot: bool) -> list[str]:
        line = str(confine(Config(image=Path("guest")), reboot=reboot))
        return [line, status("CapEff"), status("CapPrm")]

    rebooting, other = in_child(lambda: work(True)), in_child(lambda: work(False))

    assert rebooting[0].endswith("only CAP_DAC_OVERRIDE")
    assert rebooting[1:] == [f"{2:016x}"] * 2
    assert other[0].endswith("no capabilities")
    assert other[1:] == ["0" * 16] * 2


def test_test_cannot_confine_pytest() -> None:
    before = status("NoNewPrivs"), status("CapPrm")

    with pytest.raises(pytest.fail.Exception, match="would confine pytest"):
        confine(Config(image=Path("guest")))

    assert (status("NoNewPrivs"), status("CapPrm")) == before
