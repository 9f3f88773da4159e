"""Signal handlers for a block of code."""

from __future__ import annotations

import os
import signal

from pyvmm.base.signals import handling


def test_handling_handles_signals_in_the_block_and_restores_the_handler_after_it() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    seen: list[int] = []

    with handling([signal.SIGUSR1], lambda number, frame: seen.append(number)):
        os.kill(os.getpid(), signal.SIGUSR1)

    assert seen == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_handling_leaves_an_ignored_signal_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with handling([signal.SIGUSR1], lambda *_: None):
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
