"""Starting QEMU with a keeper, or without one where this machine cannot confine it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pyvmm.base.records import Record
from pyvmm.host import qemu
from pyvmm.host.confined import keeper, tree
from pyvmm.host.grant import listener
from pyvmm.host.parts.tools import Tool


class Launched(Record):
    """A started QEMU, and the reason if it is not confined."""

    pid: int
    refusal: str | None = None


def launch(
    tool: Tool,
    arguments: Callable[[Path], Sequence[str]],
    sockets: Path,
    alive: int,
    writes: Iterable[Path],
    reads: Iterable[Path] = (),
) -> Launched:
    """Start QEMU confined if this machine can do that, else as a usual process of the user.

    ``arguments`` makes QEMU's arguments for a directory that it shares. A confined QEMU can also
    open ``reads`` and ``writes``, which are its own files.
    """
    if tool.root is None:
        reason = "a QEMU of your own may need any file"
    else:
        command = [*tool.command, *arguments(sockets / keeper.SHARE)]
        order = keeper.Order(
            command=command, sockets=str(sockets), listen=str(listener(sockets)), alive=alive,
            reads=[str(path) for path in (tool.root, *reads)],
            writes=[str(path) for path in writes], linger_s=keeper.LINGER_S,
        )  # fmt: skip
        reply = _keep(order, tool, sockets, alive)
        if "pid" in reply:
            _note(sockets, command, reply["pid"])
            return Launched(reply["pid"])
        reason = reply.get("refusal", "the process that confines it ended")
    pid = qemu.launch(tool, arguments(tree.ROOT), sockets, [alive])
    return Launched(pid, reason)


def refusal() -> str | None:
    """Return why this machine cannot confine QEMU, or None if it can."""
    done = subprocess.run(
        [sys.executable, "-m", keeper.__name__], capture_output=True, text=True, check=False
    )
    try:
        found: str | None = json.loads(done.stdout).get("refusal")
    except ValueError:
        return "the process that tries the confinement ended"
    return found


def _keep(order: keeper.Order, tool: Tool, sockets: Path, alive: int) -> dict[str, Any]:
    """Start a keeper in a session of its own; return its report."""
    with (sockets / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", keeper.__name__, json.dumps(vars(order))],
            env=qemu.environment(tool),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            start_new_session=True,
            pass_fds=[alive],
        )
    assert process.stdout is not None
    with process.stdout as report:
        line = report.readline()
    process.returncode = 0  # no warning that it still runs when this command ends
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return found


def _note(sockets: Path, command: Sequence[str], pid: int) -> None:
    (sockets / "command").write_text(shlex.join(command) + "\n")
    (sockets / "pid").write_text(f"{pid}\n")
