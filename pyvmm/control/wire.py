"""The protocol of a control socket: lines of JSON.

A client sends an object with a verb and its arguments: {"do": "pause"}. The reply is {"ok": true,
...} or {"ok": false, "error": "...", "hint": null, "exit_code": 1}. More requests may follow.

A confined VM opens no files, so descriptors come with a request (SCM_RIGHTS). A save has the file
to write, which the client renames afterwards, and the parents with their paths.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any, Final

from pyvmm.errors import EXIT_FAILED, EXIT_HOST, VmmError

SCHEMA: Final = 1
MAX_REQUEST: Final = 64 << 10  # bytes
MAX_DESCRIPTORS: Final = 252  # of one request; the kernel's limit is 253
MAX_REPLY: Final = 64 << 20  # ten times the registers of 512 vCPUs

# The fields of a VM's reply to "info"
INFO: Final[dict[str, type]] = {
    "name": str, "pid": int, "state": str, "image": str, "vcpus": int, "memory_bytes": int,
    "sve_vls": list,
}  # fmt: skip

Message = dict[str, Any]


class WireError(Exception):
    """A line that is not a message."""


def pack(message: Message) -> bytes:
    """Encode a message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(line: bytes) -> Message:
    """Decode the message on a line.

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
    """Decode the reply on a line, from an untrusted peer.

    Raises: WireError.
    """
    reply = parse(line)
    if not isinstance(reply.get("ok"), bool):
        raise WireError('its reply lacks "ok"')
    return reply if reply["ok"] else _checked_failure(reply)


def _checked_failure(reply: Message) -> Message:
    """Return a failure with all fields, each of its type.  Raises: WireError."""
    reply = {**failure("the VM gave no reason"), **reply}
    code = reply["exit_code"]
    if not isinstance(reply["error"], str) or not isinstance(reply["hint"], str | None):
        raise WireError("its error is not text")
    if type(code) is not int or not EXIT_FAILED <= code <= EXIT_HOST:
        raise WireError("its exit code is not one of a failure")
    return reply


def is_info(reply: Message, name: str) -> bool:
    """Return whether a reply is the info of the VM with that name."""
    fields = {name: type(reply.get(name)) for name in INFO}
    return (
        fields == INFO
        and reply["name"] == name
        and all(0 <= reply[field] < 1 << 64 for field, kind in INFO.items() if kind is int)
    )


def failure(error: str, hint: str | None = None, exit_code: int = EXIT_FAILED) -> Message:
    """Make a failure reply; a command that gets it exits with ``exit_code``."""
    return {"ok": False, "error": error, "hint": hint, "exit_code": exit_code}


def failure_of(error: VmmError) -> Message:
    """Make the reply that reports an error."""
    return failure(error.message, error.hint, error.exit_code)


def is_trusted(peer: socket.socket) -> bool:
    """Return whether the peer is this user or root."""
    size = struct.calcsize("3i")  # Source: unix(7), SO_PEERCRED: pid, uid, gid
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (0, os.getuid())
