"""Run commands in the arm64 machine, as its users: the other end of machine.py's port.

A JSON line requests a command. JSON lines return pieces of its output, and the last its exit code.
It uses the standard library alone: this file is copied into the machine, and systemd starts it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import BinaryIO

PORT = Path("/dev/virtio-ports/native")


def main() -> None:
    """Serve until the machine is switched off."""
    with PORT.open("r+b", buffering=0) as port:
        _say(port, ready=True)
        for line in iter(port.readline, b""):
            asked = json.loads(line)
            _say(port, code=_run(port, **asked))


def _run(port: BinaryIO, user: str, command: str, timeout_s: float) -> int:
    """Run a command in a login of that user, with the user's present groups."""
    process = subprocess.Popen(
        ["timeout", "-k", "10", str(timeout_s), "su", "-", user, "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    for line in process.stdout:
        _say(port, out=line.decode(errors="replace"))
    return process.wait()


def _say(port: BinaryIO, **what: object) -> None:
    line = json.dumps(what).encode() + b"\n"
    while line:  # the port takes 32 KiB at most
        line = line[port.write(line) :]


if __name__ == "__main__":
    main()
