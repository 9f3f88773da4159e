"""Seccomp: all threads of the process make only the system calls of the table.

libseccomp makes the filter, for this machine's own calls.

Source: seccomp.h of libseccomp; Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from typing import Final

from pyvmm.errors import HostError
from pyvmm.sandbox.table import OWN_PID, UNKNOWN, WORD, Row

LIBRARY: Final = "libseccomp.so.2"
ALLOW: Final = 0x7FFF_0000
FAIL: Final = 0x0005_0000  # | the errno
MASKED_EQ: Final = 7  # scmp_compare
MOST_URGENT: Final = 255  # a call that the filter checks first

# scmp_filter_attr
TSYNC: Final = 4  # every thread of the process
SSB: Final = 7  # 1: without a mitigation that slows the threads
LOG: Final = 6  # the kernel's log names what fails


class Absent(Exception):
    """This machine has no libseccomp, or its kernel no filters."""


class _Comparison(ctypes.Structure):
    """Source: struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def library() -> ctypes.CDLL:
    """Load libseccomp.

    Raises: Absent.
    """
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Absent(f"this machine has no {LIBRARY}") from None
    found.seccomp_init.restype = ctypes.c_void_p
    return found


def has_filters() -> bool:
    """Return whether the kernel has seccomp filters."""
    # Source: seccomp(2): SECCOMP_GET_ACTION_AVAIL is 2
    libc, action = ctypes.CDLL(None), ctypes.c_uint32(ALLOW)
    number = library().seccomp_syscall_resolve_name(b"seccomp")
    return bool(libc.syscall(number, 2, 0, ctypes.byref(action)) == 0)


def restrict(rows: Iterable[Row]) -> int:
    """Allow the calls of these rows alone, in every thread; return how many calls those are.

    Raises:
        Absent: nothing has been restricted.
        HostError: the filter cannot be made.
    """
    made = _Filter(library())
    try:
        for row in rows:
            for call in row.calls.split():
                made.allow(call, row)
        for call in UNKNOWN:
            made.add(FAIL | errno.ENOSYS, call)
        made.load()
    finally:
        made.close()
    return len(made.calls)


class _Filter:
    def __init__(self, found: ctypes.CDLL) -> None:
        self.calls: set[str] = set()
        self._library = found
        self._filter = ctypes.c_void_p(found.seccomp_init(FAIL | errno.EPERM))
        for attribute in (TSYNC, SSB, LOG):
            found.seccomp_attr_set(self._filter, attribute, 1)  # an older kernel may lack it
        self._check(
            found.seccomp_syscall_priority(self._filter, self._number("ioctl"), MOST_URGENT)
        )

    def close(self) -> None:
        self._library.seccomp_release(self._filter)

    def allow(self, call: str, row: Row) -> None:
        if not row.when:
            self.add(ALLOW, call)
        for argument, value, bits in row.when:
            if value == OWN_PID:
                value, bits = os.getpid(), WORD
            self.add(ALLOW, call, _Comparison(argument, MASKED_EQ, bits, value))

    def add(self, action: int, call: str, *when: _Comparison) -> None:
        number = self._number(call)
        if number < 0:  # this architecture has another call for that
            return
        many = (_Comparison * len(when))(*when)
        self._check(
            self._library.seccomp_rule_add_array(self._filter, action, number, len(when), many)
        )
        if action == ALLOW:
            self.calls.add(call)

    def load(self) -> None:
        error = self._library.seccomp_load(self._filter)
        if error in (-errno.EINVAL, -errno.ENOSYS) and not has_filters():
            raise Absent("the kernel has no seccomp filters")
        self._check(error)

    def _number(self, call: str) -> int:
        return int(self._library.seccomp_syscall_resolve_name(call.encode()))

    def _check(self, error: int) -> None:
        if error:
            raise HostError(
                f"seccomp refuses to confine the VM: {os.strerror(-error)}",
                hint="`sandbox`=False runs it without confinement",
            )
