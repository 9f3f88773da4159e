"""A runtime directory for a run of tests, whose hosts end with the run.

So no test finds or ends the hosts of the user.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from pyvmm.host import running

VARIABLE = "XDG_RUNTIME_DIR"


@contextlib.contextmanager
def own_runtime_dir(name: str) -> Iterator[None]:
    """Use a new runtime directory in the block, and stop its hosts at the end."""
    directory = tempfile.mkdtemp(prefix=f"pyvmm-{name}-")  # short: sockets have short paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, directory)
        patch.setenv("XDG_STATE_HOME", f"{directory}/state")  # the user's key marks no snapshot
        try:
            yield
        finally:
            patch.setenv(VARIABLE, directory)  # files that a test left there
            running.end_orphans()
            for host in [*running.all_running()]:
                running.stop(host)
            shutil.rmtree(directory)
