"""Progress of long steps: lines on stderr, and a moving figure on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pyvmm.base.dirs import cached
from pyvmm.base.output import discard_stderr, printable

REFRESH_S = 0.2


class Progress:
    """Messages about steps: none if ``quiet``, plain lines if the stream is not a terminal."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._terminal = self._stream.isatty()

    def say(self, text: str) -> None:
        """Print a message."""
        self._line(f"pyvmm: {text}")

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Print the step's name, and on success its duration."""
        started = time.monotonic()
        self._line(f"pyvmm: {what} ...")
        yield
        self._line(f"pyvmm: {what}: done in {time.monotonic() - started:.1f} s")

    def cached(self, what: str, path: Path, build: Callable[[Path], None]) -> Path:
        """Return a directory of the cache; if it does not exist yet, fill it as one step."""
        if not path.is_dir():
            with self.step(what):
                cached(path, build)
        return path

    @contextmanager
    def watch(self, directory: Path, total: int) -> Iterator[None]:
        """Show how many of ``total`` bytes are in ``directory``."""
        if self._quiet or not self._terminal:
            self._line(f"pyvmm:   downloading {total / 1e6:.1f} MB")
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(directory, total, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._write("\r\033[K")

    def _follow(self, directory: Path, total: int, stop: threading.Event) -> None:
        while not stop.wait(REFRESH_S):
            arrived = sum(_size(f) for f in directory.rglob("*"))
            percent = min(100, 100 * arrived // max(total, 1))
            self._write(
                f"\r\033[Kpyvmm:   {arrived / 1e6:.1f} of {total / 1e6:.1f} MB ({percent} %)"
            )

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._write(f"{printable(text)}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # a full disk stops no step
            self._quiet = True
            if self._stream is sys.stderr:
                discard_stderr()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # apt has renamed it
        return 0
