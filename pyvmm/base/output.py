"""Standard output that has lost its reader."""

from __future__ import annotations

import os
import sys


def discard_stdout() -> None:
    """Send standard output to /dev/null, so that Python does not fail to flush it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
