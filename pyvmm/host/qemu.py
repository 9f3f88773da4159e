"""The emulated host's QEMU: its command line, its start, save and restore."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPClient, QMPError

from pyvmm.base.records import Record
from pyvmm.errors import HostError
from pyvmm.host import saved
from pyvmm.host.parts.tools import Tool
from pyvmm.host.running import starting_failed
from pyvmm.host.settings import machine_properties
from pyvmm.host.wire import FIRST_PORTS, PORTS

COLD_BOOT_S: Final = 180.0
CONVERSATION_S: Final = 60.0
BOOT_ARGUMENTS: Final = (
    "console=ttyAMA0 panic=-1 quiet cryptomgr.notests norandmaps transparent_hugepage=madvise"
)

# QEMU's own seccomp filter. It denies programs, other users' rights and scheduling.
SANDBOX: Final = (
    "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
)  # fmt: skip
STATE: Final = "state"  # QEMU's name of the descriptor for its devices' state


class Extra(Record):
    """A CPU property to add for QEMU versions from ``since`` up to ``before``.

    Versions and CPUs that lack a property reject it.
    """

    name: str
    value: str
    since: tuple[int, ...]
    before: tuple[int, ...] = (1 << 31,)


# - Fast pointer authentication.
# - No SME: QEMU 7.2 aborts with it (aarch64_sve_narrow_vq).
# - No LPA2 before QEMU 10.0: a stage 2 fault on a stage 1 walk reports the walk's level
#   (get_phys_addr_lpae).  That is -1 for Linux guests from 6.9 on, and KVM_RUN returns EFAULT.
CPU_EXTRAS: Final = (
    Extra("pauth-impdef", "on", (6,)),
    Extra("sme", "off", (7, 1)),
    Extra("lpa2", "off", (7,), (10,)),
)
CPUS_WITH_EXTRAS: Final = ("max",)


# What every host has, unless the user's settings choose otherwise.
MACHINE: Final = {"virtualization": "on", "gic-version": "3", "memory-backend": "mem"}


class QemuPlan(Record):
    """One emulated host: the program, what it models, and the files it needs."""

    tool: Tool
    version: str
    cpu: str
    kernel: Path
    usr: Path  # the erofs image of /usr
    counted: bool = False  # one CPU, and one nanosecond per instruction
    sandbox: bool = False  # it has SANDBOX: see has_sandbox()
    properties: str = ""  # of the machine, in place of MACHINE's or beside them

    @property
    def cpu_argument(self) -> str:
        """The -cpu argument, with the extra properties."""
        model, *properties = self.cpu.split(",")
        if model not in CPUS_WITH_EXTRAS:
            return self.cpu
        version = version_tuple(self.version)
        given = {p.partition("=")[0] for p in properties}
        extras = [
            f"{extra.name}={extra.value}"
            for extra in CPU_EXTRAS
            if extra.name not in given and extra.since <= version < extra.before
        ]
        return ",".join([self.cpu, *extras])

    @property
    def machine_argument(self) -> str:
        """The -M argument."""
        properties = MACHINE | machine_properties(self.properties)
        return ",".join(["virt", *(f"{name}={value}" for name, value in properties.items())])

    def machine(
        self, memory: Path, sockets: Path, *, keep_memory: bool, shared: Path = Path("/")
    ) -> list[str]:
        """Return the arguments that a cold boot and a start from its saved state share.

        The host sees the files below ``shared``.  ``memory`` is the file of the host's RAM.  A
        cold boot writes to it (``keep_memory``); a start from the saved state maps it private,
        copy-on-write.
        """
        share = "on" if keep_memory else "off"
        size = saved.memory_size()
        cpus = ["-smp", "1", "-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
        if not self.counted:
            cpus = ["-smp", str(saved.cpus()), "-accel", "tcg,thread=multi"]
        arguments = [
            *(SANDBOX if self.sandbox else ()),
            "-M", self.machine_argument,
            "-cpu", self.cpu_argument,
            *cpus, "-m", f"size={size}B",
            "-object",
            f"memory-backend-file,id=mem,size={size},mem-path={option(memory)},share={share}",
            "-nographic", "-no-reboot", "-nodefaults", "-nic", "none", "-no-user-config",
            "-serial", f"file:{sockets / 'console.log'}", "-monitor", "none",
            "-qmp", f"unix:{option(sockets / 'qmp')},server=on,wait=off",
            "-drive", f"if=none,id=usr,read-only=on,format=raw,file={option(self.usr)}",
            "-device", "virtio-blk-device,drive=usr",
            "-device", f"virtio-serial-device,id=vs,max_ports={PORTS + 1}",
            "-fsdev",
            f"local,id=user,path={option(shared)},security_model=none,multidevs=remap",
            "-device", "virtio-9p-device,fsdev=user,mount_tag=user",
        ]  # fmt: skip
        for port in range(1, FIRST_PORTS + 1):
            path = option(sockets / f"p{port}")
            arguments += [
                "-chardev", f"socket,id=c{port},path={path},server=on,wait=off",
                "-device", f"virtserialport,bus=vs.0,chardev=c{port},name=pyvmm.{port},nr={port}",
            ]  # fmt: skip
        return arguments


def option(path: Path) -> str:
    """Return a path for a QEMU option, with commas doubled."""
    return str(path).replace(",", ",,")


def version_tuple(version: str) -> tuple[int, ...]:
    """Return a QEMU version as numbers: 7.2.22 is (7, 2, 22)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def has_sandbox(tool: Tool) -> bool:
    """Return whether a QEMU was built with seccomp, and this machine's kernel has filters.

    QEMU refuses the option otherwise, before it prints its version.
    """
    try:
        tool.run([*SANDBOX, "--version"])
    except HostError:
        return False
    return True


def launch(tool: Tool, arguments: Sequence[str], sockets: Path, inherit: Sequence[int]) -> int:
    """Start QEMU in a session of its own, so that it outlives this command; return its pid."""
    with (sockets / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            [*tool.command, *arguments],
            env=environment(tool),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            pass_fds=inherit,
        )
    (sockets / "command").write_text(shlex.join([*tool.command, *arguments]) + "\n")
    (sockets / "pid").write_text(f"{process.pid}\n")
    process.returncode = 0  # no warning that it still runs when this command ends
    return process.pid


def environment(tool: Tool) -> dict[str, str]:
    """Return a QEMU's environment."""
    return {**os.environ, **tool.environment}


def wait_for_line(sockets: Path, marker: str, pid: int, timeout_s: float) -> None:
    """Wait until the host's serial console shows ``marker``.

    Raises:
        HostError: QEMU ended first, or the time ran out; the message has the last lines.
    """
    console = sockets / "console.log"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if console.exists() and marker in console.read_text(errors="replace"):
            return
        if ended(pid):
            raise starting_failed("the emulated host ended while it booted", sockets)
        time.sleep(0.02)
    raise starting_failed(f"the emulated host did not boot in {timeout_s:.0f} s", sockets)


def ended(pid: int) -> bool:
    """Return whether a process has ended; reap it if it is a child of this one."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not Path(f"/proc/{pid}").exists()


def save(sockets: Path, state: Path) -> None:
    """Save the running host's devices and end it; its RAM is in a file already.

    Raises:
        HostError: QEMU failed, or did not finish in time.
    """

    async def conversation(client: QMPClient) -> None:
        await client.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        reader, writer = await _handed_over(client)
        await client.execute("migrate", {"uri": f"fd:{STATE}"})
        state.write_bytes(await reader.read())
        writer.close()
        while (answer := await _migration(client))["status"] != "completed":
            if answer["status"] in ("failed", "cancelled"):
                raise HostError(f"saving the emulated host: {answer.get('error-desc', 'failed')}")
            await asyncio.sleep(0.01)
        await client.execute("quit")

    _converse(sockets, conversation)


def restore(sockets: Path, state: Path) -> None:
    """Load the saved state into a QEMU started with ``-incoming defer``, and resume it.

    Raises:
        HostError: QEMU failed, or did not finish in time.
    """

    async def conversation(client: QMPClient) -> None:
        _, writer = await _handed_over(client)
        await client.execute("migrate-incoming", {"uri": f"fd:{STATE}"})
        writer.write(state.read_bytes())
        writer.close()
        await writer.wait_closed()

    _converse(sockets, conversation)


async def _handed_over(client: QMPClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Give QEMU one end of a connection, called STATE; return the other end.

    QEMU in its sandbox starts no program that could read or write the file.  Newer versions accept
    no descriptor of a plain file.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        client.send_fd_scm(theirs.fileno())
        await client.execute("getfd", {"fdname": STATE})
    return await asyncio.open_connection(sock=ours)


def add_ports(sockets: Path, ports: Iterable[int]) -> None:
    """Add ports to a running host.  Its agent notices them.

    Raises:
        HostError: QEMU failed, or did not finish in time.
    """

    async def conversation(client: QMPClient) -> None:
        for port in ports:
            address = {"type": "unix", "data": {"path": str(sockets / f"p{port}")}}
            backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
            device = {"driver": "virtserialport", "bus": "vs.0", "chardev": f"c{port}",
                      "name": f"pyvmm.{port}", "nr": port}  # fmt: skip
            await client.execute("chardev-add", {"id": f"c{port}", "backend": backend})
            await client.execute("device_add", device)

    _converse(sockets, conversation)


def _converse(sockets: Path, conversation: Callable[[QMPClient], Awaitable[None]]) -> None:
    """Send QMP commands; migration leaves RAM in its file (x-ignore-shared)."""
    capability = {"capability": "x-ignore-shared", "state": True}

    async def whole() -> None:
        client = QMPClient("pyvmm")
        await client.connect(str(sockets / "qmp"))
        try:
            await client.execute("migrate-set-capabilities", {"capabilities": [capability]})
            await conversation(client)
        finally:
            # QEMU may have ended after "quit".
            with contextlib.suppress(QMPError, EOFError, OSError):
                await client.disconnect()

    try:
        asyncio.run(asyncio.wait_for(whole(), CONVERSATION_S))
    except (OSError, EOFError, TimeoutError, QMPError) as error:
        raise starting_failed(
            f"a QMP command to QEMU failed: {error!r}",
            sockets,
            hint="`pyvmm host rm`, then run the command again",
        ) from error


async def _migration(client: QMPClient) -> dict[str, Any]:
    answer = await client.execute("query-migrate")
    return answer if isinstance(answer, dict) else {}
