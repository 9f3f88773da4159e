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

PR_SET_NO_NEW_PRIVS: Final = 38  # Source: linux/prctl.h
# A core has the guest's memory.  If it goes to a program (core_pattern), only a limit of 1 prevents
# it; a file needs more than that.  Source: Linux, fs/coredump.c
NO_CORE: Final = 1
# Source: linux/capability.h
CAPABILITY_VERSION: Final = 0x2008_0522
DAC_OVERRIDE: Final = 1 << 1
NAMES: Final = {DAC_OVERRIDE: "CAP_DAC_OVERRIDE"}  # of what may be kept


class Confinement(Record):
    """What a kernel confines a VM with; ``lacks`` says what is missing, and why."""

    landlock: int  # the ABI; 0: none
    calls: int  # allowed system calls; 0: no filter
    capabilities: tuple[str, ...] = ()  # that it has kept
    lacks: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        has = [
            f"Landlock ABI {self.landlock}" if self.landlock else "",
            f"seccomp ({self.calls} system calls)" if self.calls else "",
            f"only {', '.join(self.capabilities)}" if self.capabilities else "no capabilities",
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

    With ``reboot`` it may make the machine again, and root may open files despite their modes.
    ``rules`` allow more files. Where the kernel lacks a part, the rest is applied: see the result.

    Raises:
        VmmError: the process has several threads already.
        HostError: the kernel refuses.
    """
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - only their number
        raise VmmError("the process has several threads: confine it before they start")
    if resource.getrlimit(resource.RLIMIT_CORE)[1]:  # else only root could raise it
        resource.setrlimit(resource.RLIMIT_CORE, (NO_CORE, NO_CORE))
    kept = _give_up_privileges(DAC_OVERRIDE if reboot else 0)
    lacks: list[str] = []
    version = calls = 0
    try:
        more = files.of_reboot(config) if reboot else ()
        version = landlock.restrict([*files.always(), *more, *rules])
    except landlock.Absent as absent:
        lacks.append(str(absent))
    try:
        calls = seccomp.restrict(writes=reboot)
    except seccomp.Absent as absent:
        lacks.append(str(absent))
    names = tuple(name for bit, name in NAMES.items() if kept & bit)
    return Confinement(version, calls, names, tuple(lacks))


def _give_up_privileges(wanted: int) -> int:
    """Set no_new_privs, drop every capability but those of a mask, and return what is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)  # effective, permitted, inheritable: twice 32 bits
    done = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done |= libc.capget(header, data)
    effective, permitted, *_ = struct.unpack("6I", data.raw)
    effective, permitted = effective & wanted, permitted & wanted
    done |= libc.capset(header, struct.pack("6I", effective, permitted, 0, 0, 0, 0))
    if done:
        raise HostError(f"cannot give up privileges: {os.strerror(ctypes.get_errno())}")
    return int(permitted)
