"""The emulated host of one set of settings: found running, started, or made.

Every command in an emulated host imports this module.  It imports the code that makes hosts only
when it makes one.
"""

from __future__ import annotations

import os

from pyvmm.base.dirs import LONGEST_SOCKET, locked, runtime_dir
from pyvmm.errors import HostError
from pyvmm.host import saved
from pyvmm.host.grant import ENDING as SHARE_ENDING
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
        """Name the host after the parts of it that are in the cache."""
        self._made_of = trees.chosen(self.settings)
        self.name = saved.key(self.settings, self._made_of)
        self.sockets = runtime_dir() / self.name
        longest = max(map(len, (f"/p{PORTS}", SHARE_ENDING)))
        if len(os.fsencode(self.sockets)) + longest > LONGEST_SOCKET:
            raise HostError(
                f"{self.sockets}: the path is too long for sockets",
                hint="set XDG_RUNTIME_DIR to a directory with a shorter path",
            )

    def ensure(self) -> Running:
        """Return the running host; start it if it does not run, and make it the first time.

        If another command is starting it, wait for that.

        Raises:
            HostError: a part of the host is not available, or QEMU does not start.
        """
        if None in self._made_of:
            from pyvmm.host import start

            start.fetch(self.settings, self._progress)
            self._locate()
        running = running_at(self.sockets)
        if running is None:
            with locked(runtime_dir() / f"{self.name}.start"):
                running = running_at(self.sockets)
                if running is None:
                    from pyvmm.host import start

                    running = start.start(
                        self.settings, self._made_of, self.sockets, self._progress
                    )
        return running
