"""A file that a confined process writes, and another process names.

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
RENEW: Final = b"r"
NUMBER: Final = 4  # bytes of a reply: an errno, 0 for success


class Outside(Replacement):
    """A Replacement whose ``commit`` and removal are done by a process that is forked here.

    That process obeys orders of one byte, and ends with this one. Make it before the second thread.
    """

    def __init__(
        self, path: Path, mode: int = USUAL, finish: Callable[[int], None] | None = None
    ) -> None:
        super().__init__(path, mode, finish)
        self._mode = mode
        self._ours, theirs = socket.socketpair()
        self._process = os.fork()
        if not self._process:
            self._ours.close()
            self._obey(theirs)
        theirs.close()

    def commit(self) -> None:
        """Let the process flush and name the file.  Raises: UsageError or HostError."""
        self._order(COMMIT)

    def renew(self) -> None:
        """Begin another file for the path, after a commit.  Raises: UsageError or HostError."""
        (new,) = self._order(RENEW)
        os.close(self.fd)
        self.fd = new

    def close(self) -> None:
        """End the process, which removes a file without a name; idempotent."""
        if self.fd >= 0:
            self._ours.close()
            os.waitpid(self._process, 0)
            os.close(self.fd)
            self.fd = -1

    def _order(self, order: bytes) -> list[int]:
        """Send an order, and return the descriptors that come with the reply."""
        try:
            self._ours.sendall(order)
            reply, fds, _, _ = socket.recv_fds(self._ours, NUMBER, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            reply, fds = b"", []
        if len(reply) < NUMBER:
            raise HostError(f"{self.path}: the process that gives the file its name has ended")
        if number := int.from_bytes(reply, "little"):
            raise cannot_write(self.path, OSError(number, os.strerror(number)))
        return fds

    def _obey(self, orders: socket.socket) -> NoReturn:
        """Obey orders, and at their end remove a file without a name. In the forked process."""
        try:
            for ignored in IGNORED:
                signal.signal(ignored, signal.SIG_IGN)
            while order := orders.recv(1):
                number, fds = self._do(order)
                socket.send_fds(orders, [number.to_bytes(NUMBER, "little")], fds)
            super().close()
        finally:
            os._exit(0)

    def _do(self, order: bytes) -> tuple[int, list[int]]:
        """Obey an order; return the errno, and the descriptor of a new file."""
        try:
            if order == COMMIT:
                super().commit()
                return 0, []
            super().close()
            super().__init__(self.path, self._mode, self._finish)
        except VmmError as error:
            return getattr(error.__cause__, "errno", None) or errno.EIO, []
        return 0, [self.fd]
