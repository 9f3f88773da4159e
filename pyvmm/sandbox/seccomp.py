"""Seccomp: all threads of the process make only the system calls of the table.

Source: seccomp(2); Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

from pyvmm.errors import HostError
from pyvmm.sandbox import program

NUMBERS: Final = {"aarch64": 277, "x86_64": 317}  # of seccomp(2).  Source: asm/unistd.h
# Source: linux/seccomp.h
SET_MODE_FILTER: Final = 1
GET_ACTION_AVAIL: Final = 2
FLAG_TSYNC: Final = 1  # every thread of the process
FLAG_LOG: Final = 2  # the kernel's log names what fails
FLAG_SPEC_ALLOW: Final = 4  # without a mitigation that slows the threads
ALLOW: Final = 0x7FFF_0000
INSTRUCTION: Final = 8  # bytes
CONSTANT: Final = 4  # its offset in an instruction

_libc = ctypes.CDLL(None, use_errno=True)


class Absent(Exception):
    """A kernel without filters, or an architecture for which pyvmm has none."""


def has_filters() -> bool:
    """Return whether the kernel has seccomp filters."""
    number = NUMBERS.get(os.uname().machine)
    action = struct.pack("=I", ALLOW)
    return number is not None and _libc.syscall(number, GET_ACTION_AVAIL, 0, action) == 0


def restrict(*, writes: bool = False) -> int:
    """Allow the calls of the table alone, in every thread; return how many calls those are.

    Only a process that ``writes`` may open files to write. It needs no_new_privs.

    Raises:
        Absent: nothing has been restricted.
        HostError: the kernel refuses.
    """
    machine = os.uname().machine
    if machine != program.MACHINE:
        raise Absent(f"pyvmm has a seccomp filter for {program.MACHINE}, and this is {machine}")
    code = bytearray(program.CODE)
    constants = dict.fromkeys(program.PIDS, os.getpid())
    if writes:
        constants |= dict.fromkeys(program.OPENS, os.O_TRUNC)
    for index, constant in constants.items():
        struct.pack_into("=I", code, index * INSTRUCTION + CONSTANT, constant)
    instructions = (ctypes.c_char * len(code)).from_buffer(code)
    # struct sock_fprog
    filters = struct.pack("@HP", len(code) // INSTRUCTION, ctypes.addressof(instructions))
    flags = FLAG_TSYNC | FLAG_LOG | FLAG_SPEC_ALLOW
    result = _libc.syscall(NUMBERS[machine], SET_MODE_FILTER, flags, filters)
    if result:  # above 0: the thread that cannot have the filter
        number = ctypes.get_errno() if result < 0 else errno.ESRCH
        if number in (errno.EINVAL, errno.ENOSYS) and not has_filters():
            raise Absent("the kernel has no seccomp filters")
        raise HostError(
            f"seccomp refuses to confine the VM: {os.strerror(number)}",
            hint="`sandbox`=False runs it without confinement",
        )
    return program.CALLS
