"""What goes over a control socket: lines of JSON.

A client sends an object, {"do": "pause"} say, with what that verb takes beside it; it gets one
back, {"ok": true, ...} or {"ok": false, "error": "...", "hint": null}; and may go on like that.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any, Final

SCHEMA: Final = 1
MAX_REQUEST: Final = 64 << 10  # bytes
MAX_REPLY: Final = 64 << 20  # the registers of 512 vCPUs take a tenth of that

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


def failure(error: str, hint: str | None = None) -> Message:
    """The reply that says what went wrong."""
    return {"ok": False, "error": error, "hint": hint}


def is_trusted(peer: socket.socket) -> bool:
    """Whether this user, or root, is at the other end."""
    size = struct.calcsize("3i")  # Source: unix(7), SO_PEERCRED: pid, uid, gid
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (0, os.getuid())
