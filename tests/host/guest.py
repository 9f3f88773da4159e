"""``python guest.py NUMBER...``: terminals as a running machine has them, each echoing.

Prints its process and where each is found; ends with 7 at a ^D on one of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from pyvmm.base.loop import Loop
from pyvmm.terminal.terminals import Terminals

EOT = b"\x04"


class Echo:
    """A guest that echoes its input."""

    def __init__(self, terminals: Terminals, loop: Loop) -> None:
        self._outputs = terminals.outputs
        self._loop = loop

    def send(self, data: bytes, terminal: int = 0) -> int:
        """Echo."""
        self._outputs[terminal](data)
        if EOT in data:
            self._loop.stop()
        return len(data)

    def on_room(self, callback: Callable[[], None], terminal: int = 0) -> None:
        """There is always room."""

    def resize(self, columns: int, rows: int) -> None:
        """Say the size."""
        self._outputs[0](b"%d columns, %d rows\n" % (columns, rows))


def main() -> int:
    """Echo until the end."""
    with Terminals(map(int, sys.argv[1:])) as terminals, Loop() as loop:
        detach = terminals.attach(Echo(terminals, loop), loop)
        print(os.getpid(), *terminals.paths.values(), flush=True)
        loop.run()
        detach()
    return 7


if __name__ == "__main__":
    sys.exit(main())
