"""The control socket of a running VM: its server and all verbs, with a hostile client.

The VM has no KVM: its devices are real, what needs a vCPU is a plain object.  The input is what
the client sends; a byte 0xFF ends a piece that it sends at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from fuzz.jsonmutator import mutated
from fuzz.snapshots import scratch
from fuzz.targets.devicestate import disk
from pyvmm.base.loop import Loop
from pyvmm.control import service
from pyvmm.control.server import Server
from pyvmm.control.service import VERBS, Service
from pyvmm.control.wire import MAX_REQUEST
from pyvmm.errors import UsageError
from pyvmm.layout import RAM_BASE
from pyvmm.machine.console import Console
from pyvmm.machine.resizing import Resizing
from pyvmm.snapshot.snapshot import SnapshotVcpu
from tests.devices.live import RAM_SIZE, LiveDevices
from tests.snapshot import sample

PIECE = b"\xff"


class Machine:
    """A machine without vCPUs that run: its devices, and what the verbs ask for."""

    def __init__(self, name: str) -> None:
        state = sample.state()
        self.live = LiveDevices(disk(name))
        self.live.use()
        virtio = [mmio.device for mmio in self.live.virtio]
        self.config = state.config
        self.is_paused = False
        self.holder = ""
        self.plan = SimpleNamespace(vcpus=len(state.vcpus), features=state.features)
        self.vls = state.vls
        self.vcpus = [SnapshotVcpu(vcpu) for vcpu in state.vcpus]
        self.resizing = Resizing(RAM_SIZE, virtio)
        self.resizing.statistics = lambda timeout_s=0.0: None  # type: ignore[method-assign]  # no guest replies
        self.memory = SimpleNamespace(host_address=RAM_BASE, size=RAM_SIZE)
        self.board = SimpleNamespace(
            irqchip=SimpleNamespace(gic=None), addressable=self.live.memory
        )
        uart: Any = self.live.devices["uart0"]
        self.console = Console(uart, [uart])
        self.counts = SimpleNamespace(
            exits=lambda: [{"uart0 read": 1}] * len(self.vcpus),
            kernel=lambda: [{"exits": 2}] * len(self.vcpus),
            bytes_without_exit=lambda: {"uart0": 3},
        )

    def pause(self) -> None:
        """Note that the vCPUs are paused."""
        self.is_paused = True

    def resume(self) -> None:
        """Note that the vCPUs run."""
        self.is_paused = False

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the vCPUs do not run: they never do."""
        return contextlib.nullcontext()

    def devices(self) -> list[dict[str, Any]]:
        """Describe the devices."""
        return [{"region": "virtio0", **mmio.device.describe()} for mmio in self.live.virtio]


def _no_save(*_: object, **__: object) -> None:
    raise UsageError("nothing is saved here")


@functools.cache
def serving() -> tuple[Loop, str]:
    """Serve a machine from a loop in another thread; return the socket's path."""
    vars(service)["save"] = _no_save  # the client chooses a path, which would be written
    path = str(scratch() / "vm.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    listener.setblocking(False)
    machine: Any = Machine("control")
    loop = Loop()
    handlers = Service(lambda: machine, lambda: None, time.monotonic()).handlers
    claim: Any = SimpleNamespace(listener=listener)
    Server(loop, claim, handlers)
    return loop, path


def check(data: bytes) -> None:
    """Send the bytes; every reply must be a message, and the VM must answer afterwards."""
    loop, path = serving()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            loop.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        replies = _talk(path, data)
        last = _talk(path, b'{"do":"info"}\n')
    finally:
        loop.stop()
        thread.join()
    if failed:
        raise failed[0]
    for line in replies + last:
        reply = json.loads(line)
        assert isinstance(reply["ok"], bool), "no ok"
        assert reply["ok"] or not str(reply["error"]).startswith("unexpected"), reply
    assert len(last) == 1 and json.loads(last[0])["ok"], "the VM does not answer"


def _talk(path: str, data: bytes) -> list[bytes]:
    """Send pieces, read until the VM hangs up, and return the lines."""
    received = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in data.split(PIECE):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(MAX_REQUEST):
                received += more
    return received.splitlines()


def mutate(data: bytes, most: int, seed: int) -> bytes | None:
    """Change one of the requests."""
    lines = data.split(b"\n")
    at = seed % len(lines)
    changed = mutated(lines[at], most - len(data) + len(lines[at]), seed)
    return None if changed is None else b"\n".join([*lines[:at], changed, *lines[at + 1 :]])


def seeds() -> Iterator[bytes]:
    """Yield a request of each verb, and several in pieces."""
    more: dict[str, Any] = {
        "save": {"file": os.devnull, "parent": "/x", "resume": True, "track": True},
        "registers": {"vcpu": 0, "whole": True}, "sysrq": {"key": "t"},
        "balloon": {"size": 4096}, "memory": {"size": 4096},
    }  # fmt: skip
    lines = [json.dumps({"do": verb, **more.get(verb, {})}).encode() + b"\n" for verb in VERBS]
    yield from lines
    yield b'{"do":"balloon","more":-4096}\n{"do":"balloon","collect":true}\n'
    yield PIECE.join(lines[4:7])
    yield b'{"do":' + PIECE + b'"info"}\n\n{"do":1}\n'
