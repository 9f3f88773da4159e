"""Classic BPF as seccomp runs it: what a filter decides about a system call.

Source: linux/filter.h; Linux, Documentation/networking/filter.rst; seccomp(2).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

ARCHITECTURES = {"aarch64": 0xC000_00B7, "x86_64": 0xC000_003E}  # Source: linux/audit.h
ALLOW, ERRNO, KILL = 0x7FFF_0000, 0x0005_0000, 0x0000_0000  # Source: linux/seccomp.h
REFUSED = ERRNO | errno.EPERM
UNKNOWN = ERRNO | errno.ENOSYS
LOAD, AND, JUMP, RETURN = 0x20, 0x54, 0x05, 0x06
CONDITIONS: dict[int, Callable[[int, int], bool]] = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}


def decision(code: bytes, machine: str, number: int, *arguments: int) -> int:
    """Return what the filter returns for a call with these arguments; others are 0."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, ARCHITECTURES[machine], 0, *values)
    program = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, constant = program[at]
        at += 1
        if operation == LOAD:
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif operation == AND:
            accumulator &= constant
        elif operation == JUMP:
            at += constant
        elif operation == RETURN:
            return int(constant)
        else:
            at += if_true if CONDITIONS[operation](accumulator, constant) else if_false
