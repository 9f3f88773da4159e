"""Boot the arm64 machine, and run commands in it as its users."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pyvmm.errors import HostError
from pyvmm.host.parts import tools
from pyvmm.host.progress import Progress
from pyvmm.host.qemu import QemuPlan, option
from pyvmm.host.settings import DEFAULT_CPU, DEFAULT_QEMU

BOOT_S: Final = 600.0
OFF_S: Final = 120.0
GRACE_S: Final = 60.0  # for the machine to end a command that takes too long
WORDS: Final = "console=ttyAMA0 panic=-1 quiet rdinit=/init"


@dataclass(frozen=True, slots=True)
class Boot:
    """What the machine boots: kernel, initramfs, disk, first program, shared files."""

    image: Path
    initrd: Path
    disk: Path
    init: str = "/sbin/init"
    share: Path | None = None  # read-only in the machine, as 9p with the tag share
    words: str = ""  # more for the kernel's command line

    def arguments(self, plan: QemuPlan, scratch: Path) -> list[str]:
        """Return QEMU's arguments: a machine of 2 CPUs and 4 GiB, with EL2, SVE and a network."""
        arguments = [
            "-M", "virt,virtualization=on,gic-version=3", "-cpu", plan.cpu_argument,
            "-smp", "2", "-accel", "tcg,thread=multi", "-m", "4G",
            "-nographic", "-no-reboot", "-nodefaults", "-no-user-config", "-monitor", "none",
            "-serial", f"file:{scratch / 'console'}",
            "-kernel", str(self.image), "-initrd", str(self.initrd),
            "-append", f"{WORDS} NATIVE_INIT={self.init} {self.words}".rstrip(),
            "-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={option(self.disk)}",
            "-device", "virtio-blk-device,drive=disk",
            "-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net",
            "-device", "virtio-serial-device",
            "-chardev", f"socket,id=agent,path={scratch / 'agent'},server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=native",
            "-object", "rng-random,id=rng,filename=/dev/urandom",
            "-device", "virtio-rng-device,rng=rng",
        ]  # fmt: skip
        if self.share is not None:
            arguments += [
                "-fsdev",
                f"local,id=share,path={option(self.share)},security_model=none,readonly=on",
                "-device", "virtio-9p-device,fsdev=share,mount_tag=share",
            ]  # fmt: skip
        return arguments


class Machine:
    """The machine while it runs; started() ends it."""

    def __init__(self, process: subprocess.Popen[bytes], scratch: Path) -> None:
        self._process = process
        self._scratch = scratch

    @classmethod
    @contextmanager
    def started(cls, boot: Boot, progress: Progress) -> Iterator[Self]:
        """Start QEMU, and stop it at the end of the block."""
        tool = tools.qemu(DEFAULT_QEMU, progress)
        plan = QemuPlan(tool, tools.qemu_version(tool), DEFAULT_CPU, boot.image, boot.disk)
        with tempfile.TemporaryDirectory(prefix="pyvmm-") as directory:
            scratch = Path(directory)
            process = subprocess.Popen(
                [*tool.command, *boot.arguments(plan, scratch)],
                env={**os.environ, **tool.environment},
                stdin=subprocess.DEVNULL,
            )
            try:
                yield cls(process, scratch)
            finally:
                process.kill()
                process.wait()

    @property
    def console(self) -> str:
        """Return the output of the serial console."""
        try:
            return (self._scratch / "console").read_text(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def wait_for_end(self, timeout_s: float) -> str:
        """Wait until the machine switches itself off, and return its console."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise HostError(
                f"the arm64 machine is not done after {timeout_s:.0f} s:\n{self.console[-4000:]}"
            ) from error
        return self.console

    def connect(self) -> Agent:
        """Wait until the machine accepts commands."""
        deadline = time.monotonic() + BOOT_S
        while not (self._scratch / "agent").exists():
            self._check(deadline)
            time.sleep(0.05)
        agent = Agent(str(self._scratch / "agent"))
        while not agent.ready():
            self._check(deadline)
        return agent

    def switch_off(self, agent: Agent) -> None:
        """Make the machine flush its disk and end."""
        agent.ask("root", "systemctl poweroff", OFF_S)
        self.wait_for_end(OFF_S)

    def _check(self, deadline: float) -> None:
        if self._process.poll() is not None or time.monotonic() > deadline:
            raise HostError(f"the arm64 machine does not boot:\n{self.console[-4000:]}")


class Agent:
    """The program in the machine that runs commands: agent.py, at the other end of the port."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._rest = b""

    def ready(self) -> bool:
        """Return whether the agent responds within a second."""
        try:
            return bool(self._line(1.0).get("ready"))
        except TimeoutError:
            return False

    def ask(self, user: str, command: str, timeout_s: float) -> None:
        """Request a command, which the machine ends after that time."""
        request = json.dumps({"user": user, "command": command, "timeout_s": timeout_s})
        self._socket.sendall(request.encode() + b"\n")

    def run(
        self, user: str, command: str, timeout_s: float, show: Callable[[str], None]
    ) -> tuple[int, str]:
        """Run a command to its end; returns its exit code and output.

        Raises:
            TimeoutError: the machine does not answer in time.
        """
        self.ask(user, command, timeout_s)
        deadline = time.monotonic() + timeout_s + GRACE_S
        said: list[str] = []
        while True:
            answer = self._line(deadline - time.monotonic())
            if "code" in answer:
                return answer["code"], "".join(said)
            if "out" in answer:
                said.append(answer["out"])
                show(answer["out"])

    def _line(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            received = self._socket.recv(1 << 16)
            if not received:
                raise HostError("the arm64 machine has ended")
            self._rest += received
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
