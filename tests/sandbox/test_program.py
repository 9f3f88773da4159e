"""The filter's program: it decides as the table says, and is what libseccomp makes of that."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from pyvmm.sandbox import _build, program
from pyvmm.sandbox.table import OWN_PID, TABLE, UNKNOWN, When
from tests.sandbox import bpf

MACHINE = "aarch64"  # what the package has, also where a test uses this machine's
SHIPPED = _build.PAGE.read_text(encoding="ascii")
EVERY = range(1024)  # more numbers than Linux has
PID = 4321


@pytest.fixture(scope="module")
def made() -> _build.Program:
    try:
        return _build.make(MACHINE)
    except OSError as error:
        pytest.skip(f"libseccomp cannot be used: {error}")


@pytest.fixture(scope="module")
def shipped() -> _build.Program:
    found: dict[str, object] = {}
    exec(SHIPPED, found)  # program.py itself may have been replaced: see tests/conftest.py
    names = ("MACHINE", "CODE", "PIDS", "OPENS", "CALLS")
    return _build.Program(*(found[name] for name in names))  # type: ignore[arg-type]  # exec'd code


@pytest.fixture(scope="module")
def numbers(made: _build.Program) -> dict[str, int]:
    """Return the numbers of the table's calls on arm64, as libseccomp knows them."""
    library = ctypes.CDLL(_build.LIBRARY)
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    token = ctypes.c_uint32(library.seccomp_arch_resolve_name(MACHINE.encode()))
    names = [*UNKNOWN, *(call for row in TABLE for call in row.calls.split())]
    found = {
        name: library.seccomp_syscall_resolve_name_arch(token, name.encode()) for name in names
    }
    return {name: number for name, number in found.items() if number >= 0}


def samples() -> Iterator[tuple[int, ...]]:
    """Yield arguments that meet each condition, and that miss it by one bit."""
    yield ()
    for row in TABLE:
        for condition in row.when:
            good = arguments_of(condition)
            yield tuple(good)
            for argument in range(3):
                for bit in range(32):
                    bad = list(good)
                    bad[argument] ^= 1 << bit
                    yield tuple(bad)


def arguments_of(condition: When | None) -> list[int]:
    values = [0] * 6
    while condition is not None:
        values[condition.argument] = PID if condition.value == OWN_PID else condition.value
        condition = condition.also
    return values


def patched(found: _build.Program, *, writes: bool = False) -> bytes:
    """Return the code with a process's id, as a run loads it."""
    code = bytearray(found.code)
    constants = [(index, PID) for index in found.pids]
    if writes:
        constants += [(index, os.O_TRUNC) for index in found.opens]
    for index, constant in constants:
        code[index * 8 + 4 : index * 8 + 8] = constant.to_bytes(4, "little")
    return bytes(code)


def test_package_has_what_libseccomp_makes_of_the_table(
    made: _build.Program, shipped: _build.Program
) -> None:
    """Another version of libseccomp may order the instructions in another way."""
    ours, theirs = patched(shipped), patched(made)

    differ = [
        (number, arguments)
        for arguments in ([()] if ours == theirs else samples())
        for number in EVERY
        if bpf.decision(ours, MACHINE, number, *arguments)
        != bpf.decision(theirs, MACHINE, number, *arguments)
    ]

    assert (shipped.machine, shipped.calls) == (MACHINE, made.calls)
    assert differ == [], "run `python -m pyvmm.sandbox._build`"


def test_program_allows_the_calls_of_the_table_alone(
    shipped: _build.Program, numbers: dict[str, int]
) -> None:
    code = patched(shipped)
    free = {call for row in TABLE if not row.when for call in row.calls.split()}
    expected = {
        number: bpf.UNKNOWN if name in UNKNOWN else bpf.ALLOW
        for name, number in numbers.items()
        if name in UNKNOWN or name in free
    }
    conditional = {number for name, number in numbers.items() if number not in expected}

    for number in set(EVERY) - conditional:
        want = expected.get(number, bpf.REFUSED)
        for arguments in ((), (2**64 - 1,) * 6):
            assert bpf.decision(code, MACHINE, number, *arguments) == want, number
    assert len(conditional) == len(
        {call for row in TABLE if row.when for call in row.calls.split()} & numbers.keys()
    )


def test_program_checks_each_condition(shipped: _build.Program, numbers: dict[str, int]) -> None:
    code = patched(shipped)

    def decides(call: str, values: list[int]) -> bool:
        return bpf.decision(code, MACHINE, numbers[call], *values) == bpf.ALLOW

    conditions = [(call, row.when) for row in TABLE if row.when for call in row.calls.split()]
    every = {call: tuple(w for c, when in conditions if c == call for w in when) for call, _ in
             conditions}  # fmt: skip
    for call, when in conditions:
        for condition in when:
            good = arguments_of(condition)
            assert decides(call, good), (call, condition)
            for argument in range(6):
                for bit in range(64):
                    values = list(good)
                    values[argument] ^= 1 << bit
                    met = any(is_met(other, values) for other in every[call])
                    assert decides(call, values) == met, (call, condition, argument, bit)


def is_met(condition: When | None, values: list[int]) -> bool:
    while condition is not None:
        wanted = PID if condition.value == OWN_PID else condition.value
        if (values[condition.argument] ^ wanted) & condition.bits:
            return False
        condition = condition.also
    return True


@pytest.mark.parametrize("writes", [False, True])
def test_program_lets_only_a_rebooting_vm_open_files_to_write(
    writes: bool, shipped: _build.Program, numbers: dict[str, int]
) -> None:
    code = patched(shipped, writes=writes)
    flags = {
        os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY: True, os.O_PATH: True, os.O_DIRECTORY: True,
        os.O_RDWR: writes, os.O_WRONLY: writes, os.O_RDONLY | os.O_CREAT: writes,
        os.O_RDWR | os.O_TMPFILE: writes, os.O_RDONLY | os.O_TRUNC: False,
        os.O_RDWR | os.O_TRUNC: False,
    }  # fmt: skip

    found = {
        flag: bpf.decision(code, MACHINE, numbers["openat"], 0, 0, flag) == bpf.ALLOW
        for flag in flags
    }

    assert found == flags


def test_program_kills_a_process_that_calls_as_another_architecture(
    shipped: _build.Program,
) -> None:
    assert bpf.decision(shipped.code, "x86_64", 0) == bpf.KILL


def test_run_on_this_machine_has_a_filter() -> None:
    assert program.CALLS > 50 and program.PIDS and program.OPENS
