"""The file of --dump-dtb."""

from __future__ import annotations

import os
from pathlib import Path

from pyvmm.base.closing import Closing
from pyvmm.base.files import cannot_write, write_all, write_whole
from pyvmm.sandbox.outside import Outside


class DtbDump(Closing):
    """The file that has the newest machine's device tree, also in a confined process.

    Make it before the process is confined. With ``confined`` a process outside the confinement
    names each file; a device or a pipe has no name to get, and stays open.

    Raises: UsageError or HostError, if the file cannot be written.
    """

    def __init__(self, path: Path, *, confined: bool) -> None:
        self._path = path
        self._new: Outside | None = None
        self._fd = -1
        self._has_written = False
        if not confined:
            return
        try:
            if not path.exists() or path.is_file():
                self._new = Outside(path)
                return
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_write(path, error) from error

    def write(self, blob: bytes) -> None:
        """Write a tree in place of the last one.  Raises: UsageError or HostError."""
        try:
            if self._fd >= 0:
                with os.fdopen(self._fd, "wb", closefd=False) as file:
                    file.write(blob)
            elif self._new is not None:
                if self._has_written:
                    self._new.renew()
                write_all(self._new.fd, blob)
                self._new.commit()
                self._has_written = True
            else:
                write_whole(self._path, blob)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._new is not None:
            self._new.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
