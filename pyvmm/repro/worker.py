"""On the machine whose KVM is meant: ``python3 -m pyvmm.repro.worker``, a case in, evidence out.

The case comes as JSON on standard input; the evidence goes to standard output.  Meanwhile an empty
line goes there every few seconds, which JSON may begin with: a host that hangs sends none.
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
    """Work on a case on this machine, with pyvmm's own files where the case brings none."""
    reproduction = cases.find(case.reproduction)
    own = {name: str(path) for name, path in reproduction.files.items()}
    return reproduction.work(case.replace(files={**own, **case.files}))


def _end(number: int, frame: FrameType | None) -> None:
    """Unwind: a module that was loaded is not left behind."""
    raise SystemExit(EXIT_SIGNAL + number)


def main() -> None:
    """One case, whole; what the work itself prints goes to standard error."""
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
