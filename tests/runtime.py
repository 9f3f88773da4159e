"""A runtime directory for a run of tests, whose hosts end with the run.

So no test finds or ends the hosts of the user.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host import running

VARIABLE = "XDG_RUNTIME_DIR"


@contextlib.contextmanager
def own_runtime_dir(name: str) -> Iterator[None]:
    """Use a new runtime directory in the block, and stop its hosts at the end."""
    # The name has this process's number for end_hosts_of(). Sockets need short paths.
    directory = tempfile.mkdtemp(prefix=f"pyvmm-{name}-{os.getpid()}-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, directory)
        patch.setenv("XDG_STATE_HOME", f"{directory}/state")  # the user's key marks no snapshot
        try:
            yield
        finally:
            _remove(directory)


def end_hosts_of(pid: int) -> None:
    """Stop the hosts of a run of tests that was killed, and remove its runtime directories."""
    for directory in Path(tempfile.gettempdir()).glob(f"pyvmm-*-{pid}-*"):
        _remove(str(directory))


def _remove(directory: str) -> None:
    """Remove a runtime directory; its hosts end first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, directory)
        running.end_orphans()
        for host in [*running.all_running()]:
            running.stop(host)
        shutil.rmtree(directory)
