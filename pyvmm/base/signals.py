"""Signal handlers for the duration of a block."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator

Handler = Callable[[int, object], object]


@contextlib.contextmanager
def handled(signums: Iterable[int], handler: Handler) -> Iterator[None]:
    """Handle those signals in the block, then restore the handlers.

    A signal that the caller of the process ignores, as nohup does, stays ignored.
    """
    before = {
        signum: signal.signal(signum, handler)
        for signum in signums
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)
