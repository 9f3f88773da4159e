"""Process 1 of the emulated host: a fork server with pyvmm loaded.

It waits for clients on the virtio-serial ports and forks a session for each (session.py).  A client
that needs more ports makes QEMU add them; the kernel's uevents announce them to the agent.  It
powers the host off after some idle time.  init.sh starts it at a cold boot.  It runs in the saved
host already: a start from the saved state resumes its loop.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import pkgutil
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

import pyvmm
from pyvmm.host.inside import clock
from pyvmm.host.inside.session import serve

READY: Final = "pyvmm-agent: ready"
IDLE_FILE: Final = Path("/run/pyvmm/idle_s")  # written by sessions
IDLE_S: Final = 900.0
DEVICE: Final = Path("/dev/kvm")
VHOST_VSOCK: Final = Path("/dev/vhost-vsock")
KVM_CREATE_VM: Final = 0xAE01  # _IO(KVMIO, 0x01).  Source: uapi/linux/kvm.h
SMALLEST_VM: Final = 32  # bits of guest physical address, KVM's minimum
DESCRIPTORS: Final = (1024, 1 << 16)  # soft and hard limit for a command; a vCPU has two
PORT_NAME: Final = "pyvmm."
PORTS_CLASS: Final = Path("/sys/class/virtio-ports")
NETLINK_KOBJECT_UEVENT: Final = 15  # Source: Linux, include/uapi/linux/netlink.h
KERNEL_GROUP: Final = 1  # its multicast group.  Source: Linux, lib/kobject_uevent.c
UEVENT_SIZE: Final = 1 << 14  # more than the kernel sends: 2 KiB of variables, and a path

# Modules to load besides pyvmm's own: a forked command starts in about 30 ms, not seconds.
NOT_PRELOADED: Final = ("._build", "__main__", ".handover")  # runpy warns if these are loaded
PRELOAD: Final = (
    "rich.console", "rich.table", "rich.text", "elftools.elf.elffile", "runpy", "json", "shutil",
    "selectors", "tempfile", "subprocess", "termios", "tty",
)  # fmt: skip


def main() -> None:
    """Serve clients until the idle time is over, then power off."""
    _preload()
    resource.setrlimit(resource.RLIMIT_NOFILE, DESCRIPTORS)
    for node in (DEVICE, VHOST_VSOCK):
        if node.exists():  # commands run as the user, who is in no group inside
            node.chmod(0o666)
    if DEVICE.exists():
        keep_vm_open(DEVICE)
    wakeup = _wakeup_pipe()
    agent = Agent(wakeup)
    clock.leave_timers()
    print(READY, flush=True)
    agent.run()
    os.sync()
    os.execv("/usr/bin/busybox", ["busybox", "poweroff", "-f"])


class Agent:
    """The ports, and the sessions of the busy ones."""

    def __init__(self, wakeup: int) -> None:
        self._wakeup = wakeup
        self._ports: dict[Path, int] = {}
        # Of ports without a session: to poll one takes its data from the ring, and a session that
        # sleeps then sees no interrupt (port_fops_poll and vring_interrupt of Linux).
        self._idle = select.poll()
        self._uevents = _uevents()  # before the ports are read: none is missed
        self._sessions: dict[int, int] = {}  # process -> port
        self._last_use = time.monotonic()
        self._open_ports()

    def run(self) -> None:
        """Start a session for each client, until the idle time is over."""
        while True:
            self._start_sessions()
            left = self._last_use + _idle_s() - time.monotonic()
            if left <= 0 and not self._sessions:
                return
            awaited = [self._wakeup, self._uevents.fileno()]
            ready, _, _ = select.select(awaited, [], [], None if self._sessions else left)
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
            if self._uevents.fileno() in ready and _has_port_event(self._uevents):
                self._open_ports()
            self._reap()

    def _open_ports(self) -> None:
        """Open the ports that are not open yet."""
        for path in _port_devices():
            if path not in self._ports:
                port = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self._ports[path] = port
                self._idle.register(port, select.POLLIN)
                _notify(port)

    def _start_sessions(self) -> None:
        unconnected = {port for port, event in self._idle.poll(0) if event & select.POLLHUP}
        not_waiting = unconnected.union(self._sessions.values())
        for port in self._ports.values():
            if port not in not_waiting:
                process = os.fork()
                if process == 0:
                    _run_session(port)
                self._sessions[process] = port
                self._idle.unregister(port)

    def _reap(self) -> None:
        """Reap sessions and orphans; watch the ports of ended sessions again."""
        while True:
            try:
                process, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            port = self._sessions.pop(process, None)
            if port is not None:
                self._last_use = time.monotonic()
                self._idle.register(port, select.POLLIN)
                _notify(port)


def keep_vm_open(device: Path) -> int | None:
    """Make an empty VM; return its descriptor, or None if KVM cannot make one.

    Linux's scheduler has code that saves a vCPU's registers before it switches to another thread.
    Linux patches this code for the first VM and after the last one (preempt_notifier_key).  QEMU
    before 8.1 can execute the old code.  With this VM in the saved host, Linux never patches it
    again. See docs/stale-code.md.
    """
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(kvm, KVM_CREATE_VM, SMALLEST_VM)  # closed on exec, like all of KVM's
        finally:
            os.close(kvm)
    except OSError as error:
        print(f"pyvmm-agent: keeping a VM open: {device}: {error.strerror}", flush=True)
        return None


def _run_session(port: int) -> None:
    """Serve one client in this forked process, and end."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGIO, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    flags = fcntl.fcntl(port, fcntl.F_GETFL)
    fcntl.fcntl(port, fcntl.F_SETFL, flags & ~os.O_ASYNC)
    try:
        serve(port)
    except BaseException as error:
        print(f"pyvmm-agent: session ended: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _preload() -> None:
    for module in pkgutil.walk_packages(pyvmm.__path__, "pyvmm."):
        if not module.name.endswith(NOT_PRELOADED):
            _import(module.name)
    for name in PRELOAD:
        _import(name)
    _import("pyvmm.kvm._kvm")
    gc.collect()
    gc.freeze()


def _import(name: str) -> None:
    """Import a module ahead of use; print an error, which the command that needs it gets too."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"pyvmm-agent: {name}: {error}", flush=True)


def _wakeup_pipe() -> int:
    """Let SIGIO (a client has connected) and SIGCHLD (a session has ended) wake the loop."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGIO, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def _notify(port: int) -> None:
    """Request SIGIO when a client connects: poll always reports an unconnected port as readable."""
    fcntl.fcntl(port, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(port, fcntl.F_GETFL)
    fcntl.fcntl(port, fcntl.F_SETFL, flags | os.O_ASYNC)


def _uevents() -> socket.socket:
    """Return a socket that receives the kernel's uevents."""
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    uevents = socket.socket(socket.AF_NETLINK, kind, NETLINK_KOBJECT_UEVENT)
    uevents.bind((0, KERNEL_GROUP))
    return uevents


def _has_port_event(uevents: socket.socket) -> bool:
    """Read all uevents that have arrived; return whether one is about a port, or was lost."""
    found = False
    while True:
        try:
            found |= b"/virtio-ports/" in uevents.recv(UEVENT_SIZE)
        except BlockingIOError:
            return found
        except OSError:  # ENOBUFS: there were too many
            found = True


def _port_devices() -> list[Path]:
    names = sorted(PORTS_CLASS.glob("*/name"))
    return [Path("/dev") / n.parent.name for n in names
            if n.read_text().startswith(PORT_NAME)]  # fmt: skip


def _idle_s() -> float:
    try:
        return float(IDLE_FILE.read_text())
    except (OSError, ValueError):
        return IDLE_S


if __name__ == "__main__":
    main()
