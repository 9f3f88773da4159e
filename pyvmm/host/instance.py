"""The emulated host of one set of settings: found running, started from its saved state, or made.

This module is on the way of every command, so it loads the makers only when there is something
to make.
"""

from __future__ import annotations

import os

from pyvmm.base.dirs import LONGEST_SOCKET, locked, runtime_dir
from pyvmm.errors import HostError
from pyvmm.host import saved
from pyvmm.host.parts import trees
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running, running_at
from pyvmm.host.settings import HostSettings
from pyvmm.host.wire import PORTS


class Instance:
    """The emulated host of one set of settings."""

    def __init__(self, settings: HostSettings, progress: Progress) -> None:
        self.settings = settings
        self._progress = progress
        self._locate()

    def _locate(self) -> None:
        """Name the host by what it is made of, as far as that is in the cache."""
        self._made_of = trees.chosen(self.settings)
        self.name = saved.key(self.settings, self._made_of)
        self.sockets = runtime_dir() / self.name
        if len(os.fsencode(self.sockets / f"p{PORTS}")) > LONGEST_SOCKET:
            raise HostError(
                f"{self.sockets} is too long a path for sockets",
                hint="set XDG_RUNTIME_DIR to a directory with a shorter one",
            )

    def ensure(self) -> Running:
        """Return the running host, started (and made, the first time) when it is not there.

        Where somebody else is just starting it, that is waited for.

        Raises:
            HostError: something it is made of cannot be had, or QEMU does not start.
        """
        if None in self._made_of:
            from pyvmm.host import start

            start.fetch(self.settings, self._progress)
            self._locate()
        running = running_at(self.sockets)
        if running is not None:
            return running
        with locked(runtime_dir() / f"{self.name}.start"):
            running = running_at(self.sockets)
            if running is not None:
                return running
            from pyvmm.host import start

            return start.start(self.settings, self._made_of, self.sockets, self._progress)
