"""What goes over a control socket: lines of JSON.

A client sends an object, {"do": "pause"} say, with what that verb takes beside it; it gets one
back, {"ok": true, ...} or {"ok": false, "error": "...", "hint": null,
"exit_code": 1}; and may go on like that.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any, Final

from pyvmm.errors import EXIT_FAILED, VmmError

SCHEMA: Final = 1
MAX_REQUEST: Final = 64 << 10  # bytes
MAX_REPLY: Final = 64 << 20  # the registers of 512 vCPUs take a tenth of that

# What a VM says of itself ("info"), and how it is shown.
INFO: Final[dict[str, type]] = {
    "name": str, "pid": int, "state": str, "image": str, "vcpus": int, "memory_bytes": int,
    "sve_vls": list,
}  # fmt: skip

Message = dict[str, Any]


class WireError(Exception):
    """What came over the socket is no message."""


def pack(message: Message) -> bytes:
    """A message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(line: bytes) -> Message:
    """The message on a line.

    Raises: WireError.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    return message


def parse_reply(line: bytes) -> Message:
    """The reply on a line, from whoever listens there.

    Raises: WireError.
    """
    reply = parse(line)
    if not isinstance(reply.get("ok"), bool):
        raise WireError("it does not say whether it is ok")
    return reply if reply["ok"] else {**failure("it does not say why"), **reply}


def is_info(reply: Message, name: str) -> bool:
    """Whether a reply is what the VM of that name says of itself."""
    fields = {name: type(reply.get(name)) for name in INFO}
    return fields == INFO and reply["name"] == name


def failure(error: str, hint: str | None = None, exit_code: int = EXIT_FAILED) -> Message:
    """The reply that says what went wrong, and how a command that it ends is to exit."""
    return {"ok": False, "error": error, "hint": hint, "exit_code": exit_code}


def failure_of(error: VmmError) -> Message:
    """The reply that an error is."""
    return failure(error.message, error.hint, error.exit_code)


def is_trusted(peer: socket.socket) -> bool:
    """Whether this user, or root, is at the other end."""
    size = struct.calcsize("3i")  # Source: unix(7), SO_PEERCRED: pid, uid, gid
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (0, os.getuid())
