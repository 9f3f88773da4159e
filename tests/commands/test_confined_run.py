"""A confined run without KVM: what surrounds a machine goes on, and its end is in order."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.base.dirs import runtime_dir
from pyvmm.base.loop import Loop
from pyvmm.commands._attached import Attached, Extras
from pyvmm.config import Config
from pyvmm.control import client
from pyvmm.control.sockets import VMS
from pyvmm.terminal.stdio import Output
from tests.host.conftest import wait_for
from tests.sandbox.escape import in_child, refused

DENIED = ("Operation not permitted", "Permission denied")


class Machine:
    """A machine that waits until it is stopped, and prints from the loop's thread."""

    was_reset = has_ended = is_paused = False
    vls: frozenset[int] = frozenset()
    plan = SimpleNamespace(memory=1 << 20, vcpus=1)
    terminals = SimpleNamespace(paths={}, own=[])
    resizing = SimpleNamespace(size=1 << 20)

    def __init__(self, config: Config, output: Output) -> None:
        self.config = config
        self._output = output

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, loop: Loop) -> int:
        self._output.write(b"runs\n")
        self._loop = loop
        loop.run()
        return self._code

    def stop(self, code: int) -> None:
        self._code = code
        self._loop.stop()


def run_confined(monkeypatch: pytest.MonkeyPatch, out: int, secret: Path, **extras: Any) -> Any:
    """Run a machine, and return the exit code and what an escape would be refused."""
    config = Config(image=Path("guest"), name="it", ttys=frozenset({0}))

    def make(attached: Attached, restorer: object = None) -> Machine:
        attached._machine = Machine(config, attached._output)  # type: ignore[assignment]  # a fake
        return attached._machine  # type: ignore[return-value]  # a fake

    monkeypatch.setattr(Attached, "_make", make)
    with Output(out) as output:
        attached = Attached(config, Extras(sandbox=True, **extras), output)
        return attached.run(), refused(secret)


@pytest.mark.parametrize("with_trace", [False, True])
def test_confined_run_prints_answers_stops_and_leaves_nothing(
    with_trace: bool, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, trace = tmp_path / "id", tmp_path / "run.pftrace"
    secret.write_bytes(b"secret")
    reading, writing = os.pipe()
    socket = runtime_dir(VMS) / "it.sock"

    def ask() -> Any:
        wait_for(socket.exists)
        info = client.ask(socket, {"do": "info"})
        assert client.ask(socket, {"do": "stop"})["ok"]
        return info

    asker = os.fork()
    if not asker:
        try:
            os._exit(0 if ask()["name"] == "it" else 1)
        finally:
            os._exit(2)
    extras = {"trace": trace} if with_trace else {}

    code, found = in_child(lambda: run_confined(monkeypatch, writing, secret, **extras))

    assert os.waitpid(asker, 0)[1] == 0
    assert code == 0
    assert {name for name, error in found.items() if error not in DENIED} == set()
    assert os.read(reading, 100) == b"runs\n"
    assert list(socket.parent.iterdir()) == []
    assert trace.exists() is with_trace
    for fd in (reading, writing):
        os.close(fd)
