"""The times that a user of the emulated host waits, on the outer machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.rows import SECONDS, Cell, Row

COLD, WARM, RUNNING = "outside cold", "outside warm", "outside running"
ROUNDS: Final = 3
ROWS: Final = (
    Row("pyvmm run hello, host booted and saved first", SECONDS, Cell(COLD)),
    Row("pyvmm run hello, host started from its saved state", SECONDS, Cell(WARM)),
    Row("pyvmm run hello, host running", SECONDS, Cell(RUNNING)),
)


def measure() -> dict[str, list[dict[str, float]]]:
    """Measure a new host: its first start, starts from its saved state, and commands in it."""
    program = str(Path(sys.executable).with_name("pyvmm"))
    # A word that the host's kernel ignores makes a host that is not in the cache.
    own = ["--host-append", f"pyvmm.bench={os.getpid()}"]
    found: dict[str, list[dict[str, float]]] = {COLD: [], WARM: [], RUNNING: []}
    with tempfile.TemporaryDirectory(prefix="bench-") as runtime:
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}

        def pyvmm(*words: str) -> float:
            before = time.monotonic()
            subprocess.run([program, *words], env=environment, check=True, capture_output=True)
            return time.monotonic() - before

        try:
            found[COLD].append({"spent": pyvmm("run", *own, "hello")})
            for _ in range(ROUNDS):
                found[RUNNING].append({"spent": pyvmm("run", *own, "hello")})
            for _ in range(ROUNDS):
                pyvmm("host", "stop", *own)
                found[WARM].append({"spent": pyvmm("run", *own, "hello")})
        finally:
            pyvmm("host", "rm", *own)
    return found
