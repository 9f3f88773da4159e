"""Facts about a host apart from KVM: CPUs, VHE, kernel warnings. Also loads kernel modules."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyvmm.errors import HostError
from pyvmm.machine.vcpus import online_cpus

INTERRUPTS: Final = Path("/proc/interrupts")
KMSG: Final = Path("/dev/kmsg")
MODULES: Final = Path("/sys/module")
# Source: arch/arm64/include/asm/unistd.h by way of include/uapi/asm-generic/unistd.h
NR_FINIT_MODULE: Final = 273
NR_DELETE_MODULE: Final = 106
ALARMING: Final = re.compile(r"WARNING:|BUG:|Oops|Internal error|cut here")
LONGEST: Final = 8192  # bytes of a record.  Source: Documentation/ABI/testing/dev-kmsg


def cpus() -> frozenset[int]:
    """Return the online CPUs that this process may use."""
    return online_cpus() & frozenset(os.sched_getaffinity(0)) or online_cpus()


def runs_in_vhe() -> bool | None:
    """Return whether the host's kernel runs at EL2, or None if it lacks KVM.

    At EL2 the kernel uses EL2's own timer, so that KVM can give guests the physical timer.
    Source: Linux, arch_timer_populate_kvm_info() in drivers/clocksource/arm_arch_timer.c.
    """
    text = INTERRUPTS.read_text(encoding="ascii", errors="replace")
    if "kvm guest vtimer" not in text:
        return None
    return "kvm guest ptimer" in text


def kernel() -> str:
    """Return the name and version of the host's kernel."""
    return f"Linux {platform.release()} {platform.version()}"


class KernelLog:
    """The kernel's log from now on; empty if this process may not read it."""

    def __init__(self) -> None:
        try:
            self._fd: int | None = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = None

    def alarming(self) -> list[str] | None:
        """Return new lines that report an error, or None if the log cannot be read."""
        if self._fd is None:
            return None
        return [line for line in self._lines(self._fd) if ALARMING.search(line)]

    def _lines(self, fd: int) -> Iterator[str]:
        while True:
            try:
                record = os.read(fd, LONGEST)
            except BlockingIOError:
                return
            except BrokenPipeError:  # overwritten before it was read
                continue
            yield record.decode(errors="replace").partition(";")[2].partition("\n")[0]

    def close(self) -> None:
        """Close the log."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@contextmanager
def loaded(module: Path, name: str, **parameters: int) -> Iterator[Path]:
    """Load a kernel module for the block; yield the directory of its parameters.

    Raises: HostError, if the kernel refuses it.
    """
    values = " ".join(f"{key}={value}" for key, value in parameters.items())
    with module.open("rb") as file:
        _call(NR_FINIT_MODULE, f"loading {name}", file.fileno(), values.encode(), 0)
    try:
        yield MODULES / name / "parameters"
    finally:
        _call(NR_DELETE_MODULE, f"unloading {name}", name.encode(), os.O_NONBLOCK)


def _call(number: int, what: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        code = ctypes.get_errno()
        hints = {
            errno.EPERM: "run as root, on a kernel that is not locked down",
            errno.EEXIST: f"unload the module of another run: rmmod {what.split()[-1]}",
            errno.ENOEXEC: "build the module for this kernel",
            errno.EOPNOTSUPP: "use a host with VHE and SVE; the control needs Linux 6.1 or later",
        }
        raise HostError(f"{what}: {os.strerror(code)}", hint=hints.get(code, "see `dmesg`"))
