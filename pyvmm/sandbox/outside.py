"""A file that gets its name from a process of its own, because the one that writes is confined.

The right to rename a file in a directory is the right to replace and remove any other file there.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from pyvmm.base.files import USUAL, Replacement, cannot_write
from pyvmm.errors import HostError, VmmError

IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
COMMIT: Final = b"c"
NUMBER: Final = 4  # bytes of a reply: an errno, 0 for success


class Outside(Replacement):
    """A Replacement whose ``commit`` and removal are done by a process that is forked here.

    That process obeys one byte, and ends with this one. Make it before the second thread.
    """

    def __init__(
        self, path: Path, mode: int = USUAL, finish: Callable[[int], None] | None = None
    ) -> None:
        super().__init__(path, mode, finish)
        self._ours, theirs = socket.socketpair()
        self._process = os.fork()
        if not self._process:
            self._ours.close()
            self._obey(theirs)
        theirs.close()

    def commit(self) -> None:
        """Have the file flushed and named.  Raises: UsageError or HostError."""
        try:
            self._ours.sendall(COMMIT)
            reply = self._ours.recv(NUMBER)
        except OSError:
            reply = b""
        if len(reply) < NUMBER:
            raise HostError(f"{self.path}: the process that gives the file its name has ended")
        if number := int.from_bytes(reply, "little"):
            raise cannot_write(self.path, OSError(number, os.strerror(number)))

    def close(self) -> None:
        """End the process, which removes a file without a name; idempotent."""
        if self.fd >= 0:
            self._ours.close()
            os.waitpid(self._process, 0)
            os.close(self.fd)
            self.fd = -1

    def _obey(self, orders: socket.socket) -> NoReturn:
        """Commit when told to; remove the file otherwise. In the forked process."""
        try:
            for number in IGNORED:
                signal.signal(number, signal.SIG_IGN)
            while orders.recv(1) == COMMIT:
                orders.sendall(self._commit().to_bytes(NUMBER, "little"))
            super().close()
        finally:
            os._exit(0)

    def _commit(self) -> int:
        """Commit, and return the errno."""
        try:
            super().commit()
        except VmmError as error:
            return getattr(error.__cause__, "errno", None) or errno.EIO
        return 0
