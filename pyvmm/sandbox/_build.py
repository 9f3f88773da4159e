"""Make the seccomp filter of table.py by libseccomp, and write it to program.py.

    python -m pyvmm.sandbox._build     after a change of the table; needs libseccomp 2.5 or later

A run loads only the result: libseccomp and the table take 2 % of a start.

Source: seccomp.h of libseccomp; linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from pyvmm.base.records import Record
from pyvmm.sandbox.table import O_CHANGE, OWN_PID, TABLE, UNKNOWN, SeccompRule, When

LIBRARY: Final = "libseccomp.so.2"
ALLOW: Final = 0x7FFF_0000
FAIL: Final = 0x0005_0000  # | the errno
MASKED_EQ: Final = 7  # scmp_compare
MOST_URGENT: Final = 255  # a call that the filter checks first
PLACE: Final = 0x6469_7000  # stands for the process's id: an argument that no row has

INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
PAGE: Final = Path(__file__).with_name("program.py")
PER_LINE: Final = 5


class Program(Record):
    """The filter of one architecture."""

    machine: str
    code: bytes
    pids: tuple[int, ...]  # the instructions whose constant is the process's id
    opens: tuple[int, ...]  # those whose constant are the flags that openat must not have
    calls: int  # that it allows, some with conditions


class _Comparison(ctypes.Structure):
    """Source: struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def make(machine: str, rows: Iterable[SeccompRule] = TABLE) -> Program:
    """Return the filter for an architecture, as uname(2) names it.

    Raises: OSError, without libseccomp, or if it refuses a rule.
    """
    made = _Filter(ctypes.CDLL(LIBRARY), machine)
    try:
        for row in rows:
            for call in row.calls.split():
                made.allow(call, row)
        for call in UNKNOWN:
            made.add(FAIL | errno.ENOSYS, call)
        code = made.export()
    finally:
        made.close()
    pids, opens = _places(code, JUMP_IF_EQUAL, PLACE), _places(code, AND, O_CHANGE)
    return Program(machine, code, pids, opens, len(made.calls))


def _places(code: bytes, operation: int, constant: int) -> tuple[int, ...]:
    """Return the numbers of the instructions with that operation and constant."""
    every = enumerate(INSTRUCTION.iter_unpack(code))
    return tuple(n for n, (found, _, _, k) in every if (found, k) == (operation, constant))


class _Filter:
    def __init__(self, library: ctypes.CDLL, machine: str) -> None:
        self.calls: set[str] = set()
        self._library = library
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        self._token = ctypes.c_uint32(library.seccomp_arch_resolve_name(machine.encode()))
        self._filter = ctypes.c_void_p(library.seccomp_init(FAIL | errno.EPERM))
        if library.seccomp_arch_exist(self._filter, self._token):  # it begins with this machine's
            self._check(library.seccomp_arch_add(self._filter, self._token))
            self._check(library.seccomp_arch_remove(self._filter, ctypes.c_uint32(0)))
        ioctl = library.seccomp_syscall_resolve_name(b"ioctl")
        self._check(library.seccomp_syscall_priority(self._filter, ioctl, MOST_URGENT))

    def close(self) -> None:
        self._library.seccomp_release(self._filter)

    def allow(self, call: str, row: SeccompRule) -> None:
        if not row.when:
            self.add(ALLOW, call)
        for condition in row.when:
            self.add(ALLOW, call, *_comparisons(condition))

    def add(self, action: int, call: str, *when: _Comparison) -> None:
        if self._library.seccomp_syscall_resolve_name_arch(self._token, call.encode()) < 0:
            return  # this architecture has another call for that
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        many = (_Comparison * len(when))(*when)
        self._check(
            self._library.seccomp_rule_add_array(self._filter, action, number, len(when), many)
        )
        if action == ALLOW:
            self.calls.add(call)

    def export(self) -> bytes:
        with tempfile.TemporaryFile() as file:
            self._check(self._library.seccomp_export_bpf(self._filter, file.fileno()))
            file.seek(0)
            return file.read()

    def _check(self, error: int) -> None:
        if error:
            raise OSError(-error, f"libseccomp: {os.strerror(-error)}")


def _comparisons(condition: When | None) -> Iterator[_Comparison]:
    while condition is not None:
        value = PLACE if condition.value == OWN_PID else condition.value
        yield _Comparison(condition.argument, MASKED_EQ, condition.bits, value)
        condition = condition.also


def source(program: Program) -> Iterator[str]:
    """Yield the lines of program.py."""
    yield '"""The seccomp filter: made from table.py by `python -m pyvmm.sandbox._build`.'
    yield ""
    yield "CODE is classic BPF, an array of struct sock_filter. A run replaces the constants of the"
    yield "instructions PIDS, the process's own id, and OPENS, the flags that openat must not have."
    yield "Source: linux/filter.h."
    yield '"""'
    yield ""
    yield "from typing import Final"
    yield ""
    yield f'MACHINE: Final = "{program.machine}"'
    yield f"CALLS: Final = {program.calls}"
    yield f"PIDS: Final[tuple[int, ...]] = {program.pids!r}"
    yield f"OPENS: Final[tuple[int, ...]] = {program.opens!r}"
    yield "CODE: Final = bytes.fromhex("
    yield '    """'
    words = [program.code[at : at + 8].hex() for at in range(0, len(program.code), 8)]
    for at in range(0, len(words), PER_LINE):
        yield " ".join(words[at : at + PER_LINE])
    yield '"""'
    yield ")"


if __name__ == "__main__":
    PAGE.write_text("\n".join([*source(make("aarch64")), ""]), encoding="ascii")
