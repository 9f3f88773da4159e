"""What code that has escaped from a guest tries, in a process of its own: attempts.py."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyvmm.sandbox import confine, landlock, seccomp
from tests.sandbox.attempts import (
    Attempts,
    of_channels,
    of_files,
    of_kernel,
    of_processes,
    of_programs,
)


def has_landlock() -> bool:
    try:
        return landlock.abi() > 0
    except landlock.Absent:
        return False


def attempts(secret: Path) -> Attempts:
    """Return the attempts, by name; each raises OSError if it is refused."""
    return {
        **of_files(secret),
        **of_programs(),
        **of_processes(os.getppid()),
        **of_channels(),
        **of_kernel(),
    }


def refused(secret: Path) -> dict[str, str | None]:
    """Return the error of each attempt; None: it worked."""
    return outcomes(attempts(secret))


def outcomes(tried: Attempts) -> dict[str, str | None]:
    """Return the error of each attempt; None: it worked."""
    found: dict[str, str | None] = {}
    for name, attempt in tried.items():
        try:
            attempt()
            found[name] = None
        except OSError as error:
            found[name] = os.strerror(error.errno or 0)
    return found


def without_landlock(code: int) -> None:
    """Have the kernel refuse Landlock to this process with that errno, by a filter."""
    load, return_if_other, give_number, give_errno, allow = (
        0x20,
        0x15,
        0x06,
        0x0005_0000,
        0x7FFF_0000,
    )
    program = [
        (load, 0, 0, 0),  # the call's number
        (return_if_other, 0, 1, landlock.CREATE_RULESET),
        (give_number, 0, 0, give_errno | code),
        (give_number, 0, 0, allow),
    ]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *i) for i in program))
    filters = struct.pack("@HP", len(program), ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.prctl(confine.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    number = seccomp.NUMBERS[os.uname().machine]
    assert not libc.syscall(number, seccomp.SET_MODE_FILTER, 0, filters), ctypes.get_errno()


def in_thread(work: Callable[[], Any]) -> Any:
    """Return the result of work in a new thread."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def in_child(work: Callable[[], Any]) -> Any:
    """Return the JSON result of work in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.write(writing, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writing, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as results:
        data = results.read()
    os.waitpid(pid, 0)
    assert data, "the process has died"
    return json.loads(data)
