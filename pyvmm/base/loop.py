"""An event loop: one thread waits for files, timers, signals and other threads.

Everything in a machine except its vCPUs runs in such a loop: input for the guest, the end of the
run, a timeout, SIGTERM. Callbacks run one at a time, in the loop's thread. Other threads may use
only ``call`` and ``stop``.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable

from pyvmm.base.closing import Closing

Callback = Callable[[], None]


class Timer:
    """A callback that is due at a time of the monotonic clock."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callback) -> None:
        self.due = due
        self.callback = callback


class Loop(Closing):
    """A selectors loop with timers, signals and calls from other threads.

    A context manager: leaving it restores the signal handlers it replaced.
    """

    def __init__(self) -> None:
        # poll(2), not epoll(7): stdin may be a plain file or /dev/null, which epoll refuses.
        self._selector = selectors.PollSelector()
        self._timers: list[Timer] = []  # the next first
        self._calls: deque[Callback] = deque()
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._undo = contextlib.ExitStack()
        self._signals: dict[int, Callback] = {}
        self.watch(self._wake, self._run_calls)

    def close(self) -> None:
        """Restore the signal handlers and close the loop's own descriptors; idempotent."""
        self._undo.close()
        if self._wake >= 0:
            self._selector.close()
            os.close(self._wake)
            self._wake = -1

    def watch(self, fd: int, callback: Callback) -> None:
        """Call back whenever ``fd`` is readable or has ended."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def watch_room(self, fd: int, callback: Callback) -> None:
        """Call back whenever ``fd`` is writable."""
        self._selector.register(fd, selectors.EVENT_WRITE, callback)

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``, if it is watched."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def after(self, delay_s: float, callback: Callback) -> Timer:
        """Call back once, ``delay_s`` seconds from now, unless cancelled before."""
        timer = Timer(time.monotonic() + max(0.0, delay_s), callback)
        bisect.insort(self._timers, timer, key=lambda t: t.due)  # after timers due at the same time
        return timer

    def cancel(self, timer: Timer) -> None:
        """Cancel a timer, if it has not expired."""
        with contextlib.suppress(ValueError):
            self._timers.remove(timer)

    def call(self, callback: Callback) -> None:
        """Call back soon, in the loop's thread; safe from any thread."""
        self._calls.append(callback)
        os.eventfd_write(self._wake, 1)

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Call back when the process gets that signal, in place of its old handler.

        Raises: ValueError, outside the main thread (Python's own rule).
        """
        if not self._signals:
            self._open_signal_pipe()
        # The signal's number arrives through the pipe, so this handler does nothing.
        previous = signal.signal(signum, lambda *_: None)
        self._undo.callback(signal.signal, signum, previous)
        self._signals[signum] = callback

    def run(self) -> None:
        """Wait and call back until ``stop``; raise what a callback raises."""
        while not self._stopping:
            left_s = max(0.0, self._timers[0].due - time.monotonic()) if self._timers else None
            for key, _ in self._selector.select(left_s):
                if key.fd in self._selector.get_map():  # an earlier callback may have unwatched it
                    key.data()
            self._run_timers()
        self._stopping = False

    def stop(self) -> None:
        """Make ``run`` return after the callbacks of this round; safe from any thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def _run_calls(self) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._calls)):  # calls that these add run in the next round
            self._calls.popleft()()

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            self._timers.pop(0).callback()

    def _open_signal_pipe(self) -> None:
        """Let Python's C-level handler write each signal's number into a pipe.

        Otherwise a signal that arrives just before poll(2) waits for the next event.
        """
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._undo.callback(os.close, reader)
        self._undo.callback(os.close, writer)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, previous)
        self.watch(reader, lambda: self._run_signals(reader))

    def _run_signals(self, reader: int) -> None:
        for signum in os.read(reader, 64):
            if callback := self._signals.get(signum):
                callback()
