"""Run commands in the arm64 machine, as its users: the other end of machine.py's port.

One JSON line asks for a command, one line a piece of output answers, and one with its exit code.
Standard library alone: this file is copied into the machine, and started by systemd there.
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
    """Run a command in a login of that user, which has the groups the user has now."""
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
