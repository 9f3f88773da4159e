"""The system calls of a running VM: which of its threads make them, and why.

All other calls fail with EPERM. All threads have the filter of all rows. There is no row for what
only an escape needs: execve, fork, ptrace, mount, socket, connect, bpf, io_uring and others.

After a change: `python -m pyvmm.sandbox._build`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

OWN_PID: Final = -1  # a condition's value that is known only at run time
WORD: Final = 0xFFFF_FFFF  # the kernel reads this half of an argument that is an int


class When(NamedTuple):
    """A condition: these bits of an argument have that value."""

    argument: int
    value: int
    bits: int = WORD
    also: When | None = None  # a condition on another argument


class SeccompRule(NamedTuple):
    """Allowed calls, the threads that make them, and the reason; ``when`` restricts the calls."""

    threads: str
    calls: str
    why: str
    when: tuple[When, ...] = ()  # any of them


# Source: linux/sched.h
CLONE_THREAD: Final = 0x0001_0000
CLONE_NEW: Final = 0x7E02_0000  # the flags of new namespaces
PR_SET_NAME: Final = 15  # Source: linux/prctl.h
VHOST: Final = 0xAF00  # Source: linux/vhost.h, VHOST_VIRTIO
KVM: Final = 0xAE00  # the type of KVM's ioctls.  Source: linux/kvm.h, KVMIO
TYPE: Final = 0xFF00

# Ioctls of files that are not KVM's.  Source: asm-generic/ioctls.h, linux/fs.h
TERMINAL: Final = {
    "TCGETS": 0x5401, "TCSETS": 0x5402, "TCSETSW": 0x5403, "TCGETS2": 0x802C_542A,
    "TCSETS2": 0x402C_542B, "TIOCGPGRP": 0x540F, "TIOCGWINSZ": 0x5413,
    "FIONBIO": 0x5421, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451,
}  # fmt: skip
# Source: linux/fcntl.h
FCNTL: Final = {"F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_DUPFD_CLOEXEC": 1030}
F_SETFL: Final = 4
# Source: asm-generic/fcntl.h; arm64 has the same.
O_TRUNC: Final = 0o1000
O_CHANGE: Final = 0o1103  # O_ACCMODE, O_CREAT, O_TRUNC; for a VM that reboots, O_TRUNC alone
O_ASYNC: Final = 0o20000
BLOCK: Final = {
    "BLKGETSIZE64": 0x8008_1272, "BLKSSZGET": 0x1268, "BLKPBSZGET": 0x127B, "BLKZEROOUT": 0x127F,
}  # fmt: skip

TABLE: Final = (
    SeccompRule("vCPUs, main", "ioctl", "KVM", (When(1, KVM, TYPE),)),
    SeccompRule(
        "vCPUs, main",
        "ioctl",
        "vhost: it has this process's memory, not another's",
        (When(1, VHOST, TYPE),),
    ),
    SeccompRule(
        "main, output, pty",
        "ioctl",
        f"terminals, as {', '.join(TERMINAL)}: not TIOCSTI, which types into the user's shell",
        tuple(When(1, value) for value in TERMINAL.values()),
    ),
    SeccompRule(
        "disks", "ioctl", ", ".join(BLOCK), tuple(When(1, value) for value in BLOCK.values())
    ),
    SeccompRule(
        "all",
        "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close",
        "files that are open: disks, the console, eventfds, snapshots, the trace",
    ),
    SeccompRule(
        "all",
        "futex sched_yield clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday "
        "restart_syscall",
        "locks and clocks",
    ),
    SeccompRule(
        "all",
        "mmap munmap mprotect mremap madvise brk msync memfd_create mincore",
        "memory: Python's, guest RAM, the balloon, pmem",
    ),
    SeccompRule(
        "all",
        "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack rt_sigpending",
        "signals that end or kick a thread",
    ),
    SeccompRule(
        "all",
        "set_robust_list rseq exit exit_group gettid getpid getppid getuid geteuid getgid getegid "
        "getpgid getrandom uname sysinfo getrusage getcwd sched_getaffinity getcpu wait4",
        "what libc and Python ask",
    ),
    SeccompRule("main, vCPUs", "tgkill kill", "signals to this process alone", (When(0, OWN_PID),)),
    SeccompRule(
        "main, vCPUs, disks",
        "clone",
        "a thread: of a vCPU, a device, the output, the check of a snapshot",
        (When(0, CLONE_THREAD, CLONE_THREAD | CLONE_NEW),),
    ),
    SeccompRule("new threads", "prctl", "PR_SET_NAME: a thread's name", (When(0, PR_SET_NAME),)),
    SeccompRule(
        "main, vCPUs",
        "sched_setaffinity sched_setscheduler prlimit64",
        "of the calling process: the CPUs of a vCPU, limits",
        (When(0, 0),),
    ),
    SeccompRule(
        "main, uart, pty, output",
        "ppoll poll pselect6 select epoll_pwait epoll_wait epoll_ctl epoll_create1 eventfd2 pipe2",
        "waiting for input, timers and other threads",
    ),
    SeccompRule(
        "main, pty",
        "accept4 recvfrom recvmsg sendto sendmsg shutdown getsockopt getsockname getpeername",
        "sockets that are open: control clients and terminals",
    ),
    SeccompRule(
        "main",
        "openat",
        "to read what Landlock allows; if the VM reboots, also to write, but without O_TRUNC, "
        "which Landlock cannot refuse before Linux 6.2",
        (When(2, 0, O_CHANGE),),
    ),
    SeccompRule(
        "main",
        "fcntl",
        f"{', '.join(FCNTL)}, F_SETFL without O_ASYNC: not F_SETOWN, which sends signals to others",
        (
            *(When(1, value) for value in FCNTL.values()),
            When(1, F_SETFL, also=When(2, 0, O_ASYNC)),
        ),
    ),
    SeccompRule(
        "main",
        "faccessat faccessat2 fstat newfstatat stat lstat statx statfs fstatfs readlinkat "
        "readlink getdents64 flock dup dup3 dup2 umask",
        "files' names and attributes; getdents64 needs an open directory",
    ),
    SeccompRule(
        "main",
        "unlinkat unlink fsync fdatasync sync_file_range fallocate ftruncate fadvise64",
        "snapshots, the trace, disks, the control socket's end; Landlock decides where",
    ),
)
# These fail with ENOSYS, as on an old kernel: libc then makes a call with arguments to check.
UNKNOWN: Final = ("clone3", "openat2", "close_range")
