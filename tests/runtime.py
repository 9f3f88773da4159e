"""A runtime directory for a run of tests: what it starts is its own, and ends with it.

No test finds, ends, or trips over the hosts and the directory of whoever runs them.
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
    """While this lasts the runtime directory is a new one; the hosts in it are stopped after."""
    directory = tempfile.mkdtemp(prefix=f"pyvmm-{name}-")  # short: sockets have short paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, directory)
        try:
            yield
        finally:
            patch.setenv(VARIABLE, directory)  # whatever a test left there
            running.end_orphans()
            for host in [*running.all_running()]:
                running.stop(host)
            shutil.rmtree(directory)
