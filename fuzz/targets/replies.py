"""The replies of a hostile VM, or emulated host, to the commands that control VMs.

The input is a line of JSON: the reply to every request of the commands.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from fuzz.jsonmutator import mutated as mutate
from fuzz.targets.control import Machine
from pyvmm.cli import main
from pyvmm.commands.vms import _running
from pyvmm.control import client
from pyvmm.control.service import Service
from pyvmm.control.wire import WireError, failure, parse_reply

__all__ = ["check", "mutate", "seeds"]

NAME = "sample"
VERBS = ("info", "stat", "registers", "devices", "balloon", "memory", "pause")
COMMANDS = (
    ["list"], ["list", "--json"], ["stat", "-n", NAME, "--once"], ["stat", "-a", "--json"],
    ["debug", "-n", NAME, "-d"], ["debug", "-n", NAME, "--devices"], ["pause", "-n", NAME],
    ["balloon", "-n", NAME, "-i", "1"], ["balloon", "-n", NAME, "--collect", "--wait", "0"],
    ["memory", NAME, "--wait", "0"], ["save", NAME, "saved.snap"], ["stop", "-n", NAME],
)  # fmt: skip
CODES = {0, 1, 2, 3}


def check(data: bytes) -> None:
    """Run the commands with that reply of the VM; their output obeys, and ends with a code."""
    try:
        reply = parse_reply(data)
    except WireError:
        return
    info = replies()["info"]

    def answer(question: dict[str, Any]) -> Any:
        if question.get("vm") is None:
            return {"ok": True, "vms": [info]}
        return json.loads(json.dumps(reply))

    with mock.patch.object(client, "answer", answer), \
         mock.patch.object(_running, "all_running", lambda: []):  # fmt: skip
        for words in COMMANDS:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(words)
            said = out.getvalue() + err.getvalue()
            assert code in CODES, (words, code)
            assert "unexpected" not in err.getvalue(), (words, err.getvalue())
            assert said.replace("\n", "").isprintable(), words


@functools.cache
def replies() -> dict[str, dict[str, Any]]:
    """Return a VM's replies to requests, by verb."""
    machine: Any = Machine("replies")
    with machine.live:
        service = Service(lambda: machine, lambda: None, time.monotonic())
        return {verb: {"ok": True, **getattr(service, verb)({"do": verb})} for verb in VERBS}


def seeds() -> Iterator[bytes]:
    """Yield the replies of a VM, and failures."""
    saved = {"ok": True, "warnings": ["lost"], "bytes_on_disk": 4096}
    for reply in (*replies().values(), saved, failure("no", "try"), {"ok": False, "exit_code": 3}):
        vcpus = reply.get("vcpus")
        for vcpu in vcpus if isinstance(vcpus, list) else []:
            vcpu["registers"] = dict(list(vcpu["registers"].items())[::6])
        yield json.dumps(reply, separators=(",", ":")).encode()
