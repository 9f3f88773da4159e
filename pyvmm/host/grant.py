"""A command's request for the user's files, sent to the keeper of its emulated host.

See pyvmm/host/confined/keeper.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyvmm.errors import HostError
from pyvmm.host.running import Running, running_at
from pyvmm.host.share import ALL, NO_TREE, Needs, shares_all

ENDING: Final = ".share"  # of the keeper's socket, beside the directory of the host's sockets
ANSWER_S: Final = 30.0  # usually 3 ms
DONE: Final = b"done\n"


class Grant:
    """The tree of files that a command sees; None is all of the user's files."""

    def __init__(self, tree: str | None) -> None:
        self.tree = tree
        self.is_over = True  # the command has ended: the tree can be removed at once


def listener(sockets: Path) -> Path:
    """Return the path of the socket of a host's keeper.  It is not among those that QEMU sees."""
    return sockets.with_name(f"{sockets.name}{ENDING}")


@contextlib.contextmanager
def granted(running: Running, needs: Needs | None) -> Iterator[Grant]:
    """Have a host share files in the block, in a tree of their own.

    Without ``needs`` the command gets no file and no directory.

    Raises:
        HostError: the files cannot be shared.
    """
    if not running.is_confined:
        yield Grant(None)
        return
    if needs is None:
        yield Grant(NO_TREE)
        return
    with socket.socket(socket.AF_UNIX) as keeper:
        keeper.settimeout(ANSWER_S)
        try:
            keeper.connect(str(listener(running.path)))
            reply = _ask(keeper, ALL if shares_all() else needs)
        except (OSError, ValueError) as error:
            raise _gone(running, error) from error
        if "error" in reply:
            raise HostError(
                f"the emulated host cannot share the command's files: {reply['error']}",
                hint="`pyvmm host stop`, then run the command again",
            )
        grant = Grant(reply["tree"])
        yield grant
        if grant.is_over:
            with contextlib.suppress(OSError):  # the host has ended
                keeper.sendall(DONE)
                keeper.recv(1)


def _ask(keeper: socket.socket, needs: Needs) -> dict[str, Any]:
    request = {
        "reads": _texts(needs.reads), "updates": _texts(needs.updates),
        "creates": _texts(needs.creates), "everything": needs.everything,
        "cwd": str(Path.cwd()),
    }  # fmt: skip
    keeper.sendall(json.dumps(request).encode() + b"\n")
    with keeper.makefile("rb") as answers:
        reply: dict[str, Any] = json.loads(answers.readline())
    return reply


def _texts(paths: tuple[Path, ...]) -> list[str]:
    return [str(path.absolute()) for path in paths]


def _gone(running: Running, error: Exception) -> HostError:
    """Return the error for a keeper that does not answer."""
    from pyvmm.host.connection import Unreachable

    if running_at(running.path) is None:
        return Unreachable(f"the emulated host has ended (process {running.pid})")
    return HostError(
        f"the process that shares files with the emulated host does not answer: {error}",
        hint="`pyvmm host stop`, then run the command again",
    )
