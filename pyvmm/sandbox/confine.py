"""Confinement of this process, before its vCPUs run and before it has a second thread.

    with Machine(config) as vm:
        confine(vm.config)
        code = vm.run()

It cannot be undone. The process loses every capability, the right to gain privileges by execve(2),
files without a Landlock rule, and system calls that are not in sandbox/table.py.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterable
from typing import Final

from pyvmm.base.records import Record
from pyvmm.config import Config
from pyvmm.errors import HostError, VmmError
from pyvmm.sandbox import files, landlock, seccomp
from pyvmm.sandbox.landlock import Rule
from pyvmm.sandbox.table import TABLE

PR_SET_NO_NEW_PRIVS: Final = 38  # Source: linux/prctl.h
# Source: linux/capability.h
CAPABILITY_VERSION: Final = 0x2008_0522
DAC_OVERRIDE: Final = 1 << 1


class Confinement(Record):
    """What a kernel confines a VM with; ``lacks`` says what is missing, and why."""

    landlock: int  # the ABI; 0: none
    calls: int  # allowed system calls; 0: no filter
    lacks: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        has = [
            f"Landlock ABI {self.landlock}" if self.landlock else "",
            f"seccomp ({self.calls} system calls)" if self.calls else "",
            "no capabilities",
        ]
        text = ", ".join(part for part in has if part)
        return f"{text}; less confined: {'; '.join(self.lacks)}" if self.lacks else text


def confine(
    config: Config,
    *,
    reboot: bool = False,
    rules: Iterable[Rule] = (),
) -> Confinement:
    """Confine this process, which has made the machine of that Config.

    With ``reboot`` it may make the machine again, and root may open files that their modes forbid
    it. ``rules`` allow more files. Where the kernel or libseccomp lacks a part, the rest is
    applied: see the result.

    Raises:
        VmmError: the process has several threads already.
        HostError: the kernel refuses.
    """
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - only their number
        raise VmmError("the process has several threads: confine it before they start")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core has the guest's memory
    _give_up_privileges(DAC_OVERRIDE if reboot else 0)
    lacks: list[str] = []
    version = calls = 0
    try:
        more = files.of_reboot(config) if reboot else ()
        version = landlock.restrict([*files.always(), *more, *rules])
    except landlock.Absent as absent:
        lacks.append(str(absent))
    try:
        calls = seccomp.restrict(TABLE)
    except seccomp.Absent as absent:
        lacks.append(str(absent))
    return Confinement(version, calls, tuple(lacks))


def _give_up_privileges(kept: int) -> None:
    """Set no_new_privs, and drop every capability that is not in the mask ``kept``."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)  # effective, permitted, inheritable: twice 32 bits
    done = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done |= libc.capget(header, data)
    effective, permitted, *_ = struct.unpack("6I", data.raw)
    done |= libc.capset(header, struct.pack("6I", effective & kept, permitted & kept, 0, 0, 0, 0))
    if done:
        raise HostError(f"cannot give up privileges: {os.strerror(ctypes.get_errno())}")
