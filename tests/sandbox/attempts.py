"""System calls that only an escape makes: each raises OSError if it is refused."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Attempts = dict[str, Callable[[], object]]

# Number on arm64, number on x86-64.  Source: asm-generic/unistd.h, asm/unistd_64.h
NUMBERS: Final = {
    "acct": (89, 163), "add_key": (217, 248), "bpf": (280, 321), "clock_settime": (112, 227),
    "clone": (220, 56), "execveat": (281, 322), "fchmodat": (53, 268), "fsopen": (430, 430),
    "init_module": (105, 175), "inotify_init1": (26, 294), "io_uring_setup": (425, 425),
    "kcmp": (272, 312), "keyctl": (219, 250), "landlock_create_ruleset": (444, 444),
    "mknodat": (33, 259), "mq_open": (180, 240), "name_to_handle_at": (264, 303),
    "open_by_handle_at": (265, 304), "open_tree": (428, 428), "perf_event_open": (241, 298),
    "personality": (92, 135), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "process_vm_readv": (270, 310),
    "process_vm_writev": (271, 311), "quotactl": (60, 179), "rt_sigqueueinfo": (138, 129),
    "seccomp": (277, 317), "sethostname": (161, 170), "setns": (268, 308),
    "setpriority": (140, 141), "setuid": (146, 105), "setxattr": (5, 188), "shmget": (194, 29),
    "socketpair": (199, 53), "swapon": (224, 167), "symlinkat": (36, 266),
    "timer_create": (107, 222), "unshare": (97, 272), "userfaultfd": (282, 323),
    "utimensat": (88, 280),
}  # fmt: skip
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
CLONE_NEWUSER, CLONE_NEWNS, CLONE_THREAD = 0x1000_0000, 0x2_0000, 0x1_0000
CLONE_VM, CLONE_SIGHAND = 0x100, 0x800
PTRACE_ATTACH: Final = 16  # Source: sys/ptrace.h
PR_SET_DUMPABLE, PR_SET_PTRACER = 4, 0x59616D61  # Source: linux/prctl.h
KEYCTL_GET_KEYRING_ID: Final = 0
TIOCSTI, TIOCLINUX, FIOASYNC = 0x5412, 0x541C, 0x5452  # Source: asm-generic/ioctls.h
FICLONE: Final = 0x4004_9409  # Source: linux/fs.h
F_SETSIG: Final = 10  # Source: asm-generic/fcntl.h
HIGH: Final = 1 << 32  # in a half of the argument that the kernel ignores

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """Make a system call.  Raises: OSError."""
    number = NUMBERS[name][os.uname().machine != "aarch64"]
    values = [ctypes.c_ulong(a % 2**64) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *values), name)


def _library(name: str, *arguments: Any) -> int:
    return _check(getattr(_libc, name)(*arguments), name)


def _check(result: int, name: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def of_files(secret: Path) -> Attempts:
    """Return attempts on a file that has no rule, and on its directory."""
    new = os.fsencode(secret.with_name("other"))
    handle = struct.pack("Ii", 128, 0) + bytes(128)

    def write_to_own_memory() -> None:
        os.open("/proc/self/mem", os.O_RDWR)

    return {
        "read": lambda: secret.read_bytes(),
        "write": lambda: secret.write_bytes(b""),
        "create": lambda: secret.with_name("new").touch(),
        "list": lambda: list(secret.parent.iterdir()),
        "unlink": lambda: secret.unlink(),
        "rename": lambda: secret.rename(secret.with_name("other")),
        "link": lambda: os.link(secret, secret.with_name("other")),
        "truncate": lambda: os.truncate(secret, 0),
        "read through the root": lambda: Path(f"/proc/self/root{secret}").read_bytes(),
        "write to its own memory": write_to_own_memory,
        "chmod": lambda: call("fchmodat", AT_FDCWD, os.fsencode(secret), 0o777),
        "chmod of an open file": lambda: os.fchmod(os.memfd_create("open"), 0o777),
        "utimensat": lambda: call("utimensat", AT_FDCWD, os.fsencode(secret), None, 0),
        "setxattr": lambda: call("setxattr", os.fsencode(secret), b"user.x", b"x", 1, 0),
        "symlinkat": lambda: call("symlinkat", b"/", AT_FDCWD, new),
        "mknodat": lambda: call("mknodat", AT_FDCWD, new, 0o010600, 0),
        "name_to_handle_at": lambda: call(
            "name_to_handle_at", AT_FDCWD, os.fsencode(secret), handle, bytes(4), 0
        ),
        "open_by_handle_at": lambda: call("open_by_handle_at", 0, handle, os.O_RDONLY),
        "write to a pipe that it reads": lambda: os.open(
            f"/proc/self/fd/{os.pipe()[0]}", os.O_WRONLY
        ),
        "FICLONE": lambda: fcntl.ioctl(os.memfd_create("copy"), FICLONE, 0),
    }


# What Landlock alone refuses
BY_LANDLOCK: Final = frozenset({
    "read", "list", "unlink", "read through the root", "other's memory",
})  # fmt: skip


def of_programs() -> Attempts:
    """Return attempts to run a program or to start a process."""

    def execute_memory() -> None:
        fd = os.memfd_create("program")
        os.write(fd, Path("/proc/self/exe").read_bytes()[:4])
        call("execveat", fd, b"", None, None, AT_EMPTY_PATH)

    return {
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "execveat of a memfd": execute_memory,
        "fork": lambda: os.fork() or os._exit(0),
        "clone with a user namespace": lambda: call("clone", CLONE_NEWUSER | signal.SIGCHLD, 0),
        "clone of a thread with mounts of its own": lambda: call(
            "clone", CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_NEWNS, 0
        ),
        "init_module": lambda: call("init_module", b"", 0, b""),
    }


def of_processes(other: int) -> Attempts:
    """Return attempts on another process of the same user."""
    vector = struct.pack("PN", ctypes.addressof(ctypes.c_long(0)), 8)

    def signal_by_owner() -> None:
        reading, writing = os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETOWN, other)
        fcntl.fcntl(reading, F_SETSIG, signal.SIGCONT)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writing, b"x")

    def flag_terminal() -> None:
        reading, _ = os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)

    return {
        "ptrace": lambda: _library("ptrace", PTRACE_ATTACH, other, None, None),
        "kill": lambda: os.kill(other, 0),
        "kill all": lambda: os.kill(-1, 0),
        "kill the group": lambda: os.kill(0, 0),
        "rt_sigqueueinfo": lambda: call("rt_sigqueueinfo", other, 0, bytes(128)),
        "signal by F_SETOWN": signal_by_owner,
        "O_ASYNC, which signals a terminal's processes": flag_terminal,
        "other's memory": lambda: Path(f"/proc/{other}/mem").open("rb"),
        "process_vm_readv": lambda: call("process_vm_readv", other, vector, 1, vector, 1, 0),
        "process_vm_writev": lambda: call("process_vm_writev", other, vector, 1, vector, 1, 0),
        "pidfd_open": lambda: call("pidfd_open", other, 0),
        "pidfd_getfd": lambda: call("pidfd_getfd", 0, 0, 0),
        "pidfd_send_signal": lambda: call("pidfd_send_signal", 0, 0, None, 0),
        "kcmp": lambda: call("kcmp", os.getpid(), other, 0, 0, 0),
        "setpriority": lambda: call("setpriority", 0, other, 0),
        "prlimit of another": lambda: _library("prlimit", other, 4, None, None),
        "affinity of another": lambda: os.sched_setaffinity(other, {0}),
        "prctl(PR_SET_DUMPABLE)": lambda: _library("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0),
        "prctl(PR_SET_PTRACER)": lambda: _library("prctl", PR_SET_PTRACER, -1, 0, 0, 0),
    }


def of_kernel() -> Attempts:
    """Return attempts to reach more of the kernel, as its memory, namespaces and settings."""
    return {
        "io_uring_setup": lambda: call("io_uring_setup", 1, bytes(120)),
        "userfaultfd": lambda: call("userfaultfd", 1),
        "bpf": lambda: call("bpf", 0, bytes(72), 72),
        "perf_event_open": lambda: call("perf_event_open", bytes(112), 0, -1, -1, 0),
        "keyctl": lambda: call("keyctl", KEYCTL_GET_KEYRING_ID, -3, 0),
        "add_key": lambda: call("add_key", b"user", b"pyvmm", b"x", 1, -3),
        "unshare": lambda: call("unshare", CLONE_NEWUSER),
        "setns": lambda: call("setns", 0, 0),
        "mount": lambda: _library("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "fsopen": lambda: call("fsopen", b"tmpfs", 0),
        "open_tree": lambda: call("open_tree", AT_FDCWD, b"/", 1),
        "chroot": lambda: os.chroot("/"),
        "personality": lambda: call("personality", 0),
        "seccomp": lambda: call("seccomp", 2, 0, struct.pack("I", 0)),
        "landlock_create_ruleset": lambda: call("landlock_create_ruleset", None, 0, 1),
        "timer_create": lambda: call("timer_create", 1, None, bytes(8)),
        "setuid": lambda: call("setuid", os.getuid()),
        "sethostname": lambda: call("sethostname", b"", -1),
        "clock_settime": lambda: call("clock_settime", 0, None),
        "swapon": lambda: call("swapon", b"", 0),
        "acct": lambda: call("acct", b"/nonexistent"),
        "quotactl": lambda: call("quotactl", 0, None, 0, None),
    }


def of_channels() -> Attempts:
    """Return attempts to make a channel to other processes."""
    return {
        "socket": lambda: socket.socket(socket.AF_INET),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "socketpair": lambda: call("socketpair", 1, 1, 0, bytes(8)),
        "shmget": lambda: call("shmget", 0, 4096, 0o600),
        "mq_open": lambda: call("mq_open", b"pyvmm", os.O_CREAT | os.O_RDWR, 0o600, None),
        "inotify_init1": lambda: call("inotify_init1", 0),
        "type into the shell": lambda: fcntl.ioctl(0, TIOCSTI, b"x"),
        "type, with more bits": lambda: _library("ioctl", 0, ctypes.c_ulong(TIOCSTI | HIGH), b"x"),
        "paste into the console": lambda: fcntl.ioctl(0, TIOCLINUX, b"\3"),
        "FIOASYNC": lambda: fcntl.ioctl(0, FIOASYNC, struct.pack("i", 1)),
    }
