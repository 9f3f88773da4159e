from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from pyvmm.base.signals import handled


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the handlers that a test sets."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handled_calls_the_handler_and_restores_the_old_one() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    got: list[int] = []

    with handled([signal.SIGUSR1], lambda number, _: got.append(number)):
        os.kill(os.getpid(), signal.SIGUSR1)

    assert got == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_handled_restores_the_old_handler_after_an_error() -> None:
    before = signal.getsignal(signal.SIGUSR1)

    with pytest.raises(ValueError, match="it"), handled([signal.SIGUSR1], print):
        raise ValueError("it")

    assert signal.getsignal(signal.SIGUSR1) is before


def test_handled_leaves_an_ignored_signal_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with handled([signal.SIGHUP], print):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
