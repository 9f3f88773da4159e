"""A runtime directory for one run of tests; the hosts in it end with the run.

Tests do not find or end the hosts of the user who runs them.
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
    """Use a new runtime directory in the block; stop the hosts in it at the end."""
    directory = tempfile.mkdtemp(prefix=f"pyvmm-{name}-")  # short: sockets have short paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, directory)
        try:
            yield
        finally:
            patch.setenv(VARIABLE, directory)  # a test may have changed it
            running.end_orphans()
            for host in [*running.all_running()]:
                running.stop(host)
            shutil.rmtree(directory)
