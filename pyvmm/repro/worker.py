"""``python3 -m pyvmm.repro.worker``, which runs on the machine whose KVM is tested.

It reads a case as JSON from standard input, and writes the evidence to standard output.  Until then
it writes an empty line every few seconds, to show that it runs. JSON may begin with empty lines.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType
from typing import Any, Final

from pyvmm.errors import EXIT_SIGNAL
from pyvmm.repro import cases
from pyvmm.repro.model import Case, Evidence

BEAT_S: Final = 5.0


def do(case: Case) -> Evidence:
    """Run a case on this machine; pyvmm's own files are the default."""
    reproduction = cases.find(case.reproduction)
    own = {name: str(path) for name, path in reproduction.files.items()}
    return reproduction.work(case.replace(files={**own, **case.files}))


def _end(number: int, frame: FrameType | None) -> None:
    """Unwind the stack, so that a loaded module is unloaded."""
    raise SystemExit(EXIT_SIGNAL + number)


def main() -> None:
    """Run one case; output of the work itself goes to standard error."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _end)
    out = os.dup(1)
    os.dup2(2, 1)
    document: dict[str, Any] = json.load(sys.stdin)
    signal.signal(signal.SIGALRM, lambda *_: os.write(out, b"\n"))
    signal.setitimer(signal.ITIMER_REAL, BEAT_S, BEAT_S)
    try:
        evidence = do(Case(**document))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    with os.fdopen(out, "w") as stream:
        json.dump(evidence, stream)


if __name__ == "__main__":
    main()
