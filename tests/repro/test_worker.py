"""The worker as a program: it reads a case, and writes signs of life and evidence."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from pyvmm.repro import worker
from pyvmm.repro.model import Case, Evidence


@pytest.fixture
def own_descriptors() -> Iterator[None]:
    """Restore standard output and signal handlers, which the worker changes."""
    before = os.dup(1)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGTERM, signal.SIGALRM)}
    yield
    os.dup2(before, 1)
    os.close(before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_descriptors")
def test_worker_sends_signs_of_life_before_the_evidence(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(case: Case) -> Evidence:
        os.write(1, b"what the work says\n")
        time.sleep(0.5)
        return {"seed": case.seed}

    case = {"reproduction": "any", "settings": {}, "files": {}, "seed": 7, "module": None}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(case)))
    monkeypatch.setattr(worker, "do", slowly)
    monkeypatch.setattr(worker, "BEAT_S", 0.1)

    worker.main()

    out, err = capfd.readouterr()
    assert out.startswith("\n")
    assert json.loads(out) == {"seed": 7}
    assert "what the work says" in err
