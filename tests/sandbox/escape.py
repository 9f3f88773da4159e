"""What code that has escaped from a guest tries, in a process of its own."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyvmm.sandbox import seccomp

PTRACE_ATTACH = 16  # Source: sys/ptrace.h
TIOCSTI = 0x5412  # Source: asm-generic/ioctls.h
HIGH = 1 << 32  # in a half of the argument that the kernel ignores


def attempts(secret: Path) -> dict[str, Callable[[], object]]:
    """Return the attempts, by name; each raises OSError if it is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    return {
        "read": lambda: secret.read_bytes(),
        "write": lambda: secret.write_bytes(b""),
        "create": lambda: secret.with_name("new").touch(),
        "list": lambda: list(secret.parent.iterdir()),
        "unlink": lambda: secret.unlink(),
        "rename": lambda: secret.rename(secret.with_name("other")),
        "link": lambda: os.link(secret, secret.with_name("other")),
        "truncate": lambda: os.truncate(secret, 0),
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.fork() or os._exit(0),
        "socket": lambda: socket.socket(socket.AF_INET),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "ptrace": lambda: call("ptrace", PTRACE_ATTACH, parent, None, None),
        "mount": lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "kill": lambda: os.kill(parent, 0),
        "kill all": lambda: os.kill(-1, 0),
        "chroot": lambda: os.chroot("/"),
        "other's memory": lambda: Path(f"/proc/{parent}/mem").open("rb"),
        "type into the shell": lambda: fcntl.ioctl(0, TIOCSTI, b"x"),
        "type, with more bits": lambda: call("ioctl", 0, ctypes.c_ulong(TIOCSTI | HIGH), b"x"),
    }


def refused(secret: Path) -> dict[str, str | None]:
    """Return the error of each attempt; None: it worked."""
    found: dict[str, str | None] = {}
    for name, attempt in attempts(secret).items():
        try:
            attempt()
            found[name] = None
        except OSError as error:
            found[name] = os.strerror(error.errno or 0)
    return found


def without_landlock(code: int) -> None:
    """Have the kernel refuse Landlock to this process with that errno, by a filter."""
    library = seccomp.library()
    made = ctypes.c_void_p(library.seccomp_init(seccomp.ALLOW))
    number = library.seccomp_syscall_resolve_name(b"landlock_create_ruleset")
    assert not library.seccomp_rule_add_array(made, seccomp.FAIL | code, number, 0, None)
    assert not library.seccomp_load(made)
    library.seccomp_release(made)


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
