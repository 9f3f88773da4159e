"""Fixtures of all tests: the judges' programs, and the command under test."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import sys
import sysconfig
from pathlib import Path

import pytest

from pyvmm.host import has_device, why_not_local
from pyvmm.host.inside.agent import DEVICE, keep_vm_open
from pyvmm.host.parts import extension
from pyvmm.host.progress import Progress
from pyvmm.sandbox import _build, confine, program
from tests.runtime import own_runtime_dir

with contextlib.suppress(ImportError):  # the emulated host has no hypothesis
    from hypothesis import settings

    settings.register_profile("pyvmm", deadline=None)  # timings never decide a test
    settings.load_profile("pyvmm")

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "build/tools"  # wrappers that `make test` writes


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a runtime directory of its own, and make commands under test react to Ctrl-C.

    A SIGTERM ends the run as Ctrl-C does. A shell starts its background jobs with SIGINT ignored,
    and commands under test inherit that.
    """
    own = contextlib.ExitStack()
    own.enter_context(own_runtime_dir("tests"))
    # The machine may be one that QEMU before 8.1 emulates: see docs/stale-code.md.
    if why_not_local() is None and (vm := keep_vm_open(DEVICE)) is not None:
        own.callback(os.close, vm)
    config.add_cleanup(own.close)
    _never_confine()
    _have_filter()
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # fixtures end, and their hosts


def _never_confine() -> None:
    """Fail a test that would confine pytest's own process, and with it every later test."""
    tests, give_up = os.getpid(), confine._give_up_privileges

    def give_up_elsewhere(wanted: int) -> int:
        if os.getpid() == tests:
            pytest.fail("this test would confine pytest: run it in a forked process")
        return give_up(wanted)

    confine._give_up_privileges = give_up_elsewhere


def _have_filter() -> None:
    """Make a seccomp filter for this machine, if it is no arm64: libseccomp makes that, too."""
    machine = platform.machine()
    if machine == program.MACHINE:
        return
    with contextlib.suppress(OSError):  # it has no libseccomp: the tests that need it are skipped
        made = _build.make(machine)
        # Ignored: these are constants to all but tests.
        program.MACHINE = made.machine  # type: ignore[misc]
        program.CODE, program.CALLS = made.code, made.calls  # type: ignore[misc]
        program.PIDS, program.OPENS = made.pids, made.opens  # type: ignore[misc]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that need KVM if there is none, and say how to run them."""
    reason = why_not_local()
    if reason is None:
        return
    remedy = reason.hint if has_device() else "`make test-kvm` runs it in the emulated host"
    skip = pytest.mark.skip(reason=f"{reason}; {remedy}")
    for item in items:
        if item.get_closest_marker("kvm"):
            item.add_marker(skip)


def tool(name: str) -> Path:
    """Return the path of a judge or a build tool."""
    wrapper = TOOLS / name
    found = str(wrapper) if wrapper.exists() else shutil.which(name)
    if found is None:
        pytest.fail(f"no {name}: `make test-tools` gets it")
    return Path(found)


@pytest.fixture(scope="session")
def dtc() -> Path:
    """Return the device tree compiler."""
    return tool("dtc")


@pytest.fixture(scope="session")
def tmux() -> Path:
    """Return the terminal multiplexer: a real terminal whose screen a test can read."""
    return tool("tmux")


@pytest.fixture(scope="session")
def cross_gcc() -> Path:
    """Return a compiler for arm64, with the C library's and the kernel's headers."""
    return tool("aarch64-linux-gnu-gcc")


@pytest.fixture(scope="session")
def python_headers() -> Path:
    """Return the directory of Python.h for arm64."""
    if platform.machine() == "aarch64":
        return Path(sysconfig.get_path("include"))
    return extension.python_headers(Progress(quiet=True))


@pytest.fixture(scope="session")
def pyvmm_cmd() -> list[str]:
    """Return the command that a user types."""
    command = Path(sys.executable).with_name("pyvmm")
    if not command.exists():
        pytest.fail(f"{command} is missing: make venv")
    return [str(command)]


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a cache and a runtime directory of the test's own, in place of the user's."""
    own = tmp_path_factory.mktemp("own")
    (own / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(own / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own / "runtime"))
    return own
