"""Running code in mounts of its own."""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.host.confined import launch, mounts

Isolated = Callable[..., Any]
OTHER_USER = 65533
PR_SET_DUMPABLE = 4  # Source: uapi/linux/prctl.h


@pytest.fixture(scope="session")
def confinable() -> None:
    """Skip where the machine lets no process have mounts of its own."""
    if (reason := launch.refusal()) is not None:
        pytest.skip(f"this machine cannot confine a process: {reason}")


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a directory that every user can reach and write to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name).resolve()
        path.chmod(0o777)
        yield path


@pytest.fixture
def isolated(confinable: None) -> Isolated:
    """Return a function that runs another one in a process with its own mounts.

    The result passes through JSON.
    """

    def run(function: Callable[[], Any], uid: int | None = None) -> Any:
        reader, writer = os.pipe()
        process = os.fork()
        if not process:
            try:
                if uid is not None:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                    # Without it, a process that has changed its uid cannot write its /proc/self.
                    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
                mounts.isolate(network=True)
                reply = {"result": function()}
            except BaseException:
                reply = {"failure": traceback.format_exc()}
            os.write(writer, json.dumps(reply).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            reply = json.loads(pipe.read())
        os.waitpid(process, 0)
        assert "failure" not in reply, reply["failure"]
        return reply["result"]

    return run
