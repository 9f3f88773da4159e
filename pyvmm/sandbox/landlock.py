"""Landlock: a thread, and the threads it starts, open only files that a rule allows.

The kernel's ABI decides which access rights it knows. A right that it does not know stays
unrestricted.

Source: Linux, Documentation/userspace-api/landlock.rst; include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyvmm.base.records import Record
from pyvmm.errors import HostError

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
VERSION: Final = 1  # the flag that asks for the ABI
PATH_BENEATH: Final = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << n for n in range(6))
MAKE_REG: Final = 1 << 8
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15
OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

# First ABI with the rights -> how many file rights, network rights and scopes it has.
RIGHTS: Final = (
    (1, (13, 0, 0)),
    (2, (14, 0, 0)),  # REFER: renames to another directory
    (3, (15, 0, 0)),  # TRUNCATE
    (4, (15, 2, 0)),  # to bind and to connect TCP sockets
    (5, (16, 2, 0)),  # IOCTL_DEV
    (6, (16, 2, 2)),  # abstract sockets and signals of processes outside
)
READ: Final = READ_FILE | READ_DIR
READ_WRITE: Final = READ | WRITE_FILE | TRUNCATE
DEVICE: Final = READ_FILE | WRITE_FILE | IOCTL_DEV
MAKE: Final = READ_WRITE | MAKE_REG | REMOVE_FILE
REMOVE: Final = REMOVE_FILE

_libc = ctypes.CDLL(None, use_errno=True)


class Rule(Record):
    """Access to a file, or to all files beneath a directory."""

    path: Path
    access: int


class Absent(Exception):
    """A kernel without Landlock, or one that does not use it."""


def abi() -> int:
    """Return the kernel's ABI, 1 or more.

    Raises: Absent.
    """
    version = _libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)
    if version > 0:
        return int(version)
    if ctypes.get_errno() == errno.EOPNOTSUPP:
        raise Absent("the kernel has Landlock, but its `lsm=` parameter leaves it out")
    raise Absent("the kernel has no Landlock: Linux 5.13 and later can have it")


def restrict(rules: Iterable[Rule]) -> int:
    """Restrict the calling thread to the rules, and return the kernel's ABI.

    The thread needs no_new_privs. A path that does not exist has no rule: nothing can be opened.

    Raises:
        Absent: nothing has been restricted.
        HostError: the kernel refuses.
    """
    version = abi()
    counts = next(counts for first, counts in reversed(RIGHTS) if first <= version)
    known = [(1 << count) - 1 for count in counts]
    fields = 1 if version < 4 else 2 if version < 6 else 3
    attributes = struct.pack(f"{fields}Q", *known[:fields])
    ruleset = _call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for rule in rules:
            _add(ruleset, rule, known[0])
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _add(ruleset: int, rule: Rule, known: int) -> None:
    """Add a rule. Its path stays open as long as the process lives.

    A rule belongs to an inode: procfs and 9p make a new one once nothing uses the old one.
    """
    try:
        fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    access = rule.access & known
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        access &= OF_FILES
    _call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", access, fd), 0)


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise HostError(
            f"Landlock refuses to confine the VM: {os.strerror(code)} (system call {number})",
            hint="`sandbox`=False runs it without confinement",
        )
    return int(result)
