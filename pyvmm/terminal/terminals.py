"""A guest's terminals on pseudo-terminals of the user's machine.

Terminal 0 is the guest's console, 1 to 3 are its other UARTs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from pyvmm.base.closing import Closing
from pyvmm.base.loop import Loop
from pyvmm.terminal.stdio import Input, Key

if TYPE_CHECKING:
    from pyvmm.terminal.direct import Direct
    from pyvmm.terminal.line import Line


class GuestInput(Protocol):
    """The input of a guest's terminals: machine.console.Console is one."""

    def send(self, data: bytes, terminal: int = 0) -> int:
        """Send input; return how many bytes the guest had room for."""

    def on_room(self, callback: Callable[[], None], terminal: int = 0) -> None:
        """Set the function to call when there is room again."""

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of terminal 0."""


class Terminals(Closing):
    """The terminals with those numbers; a context manager that closes them.

    Raises:
        HostError: no pseudo-terminal is left, or the emulated host cannot reach one outside.
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._lines: dict[int, Line] = {}
        with ExitStack() as undo:
            for number in sorted(numbers):
                from pyvmm.terminal.line import make_line  # imported lazily: rarely used

                self._lines[number] = make_line(number, undo)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Hang up after readers have read the output; idempotent."""
        self._undo.close()

    @property
    def paths(self) -> Mapping[int, str]:
        """The path of each, such as /dev/pts/5."""
        return {number: line.path for number, line in self._lines.items()}

    @property
    def own(self) -> list[str]:
        """The paths of those that this process has made, not an emulated host's client."""
        return [line.path for line in self._lines.values() if line.is_own]

    @property
    def outputs(self) -> Mapping[int, Callable[[bytes], None]]:
        """The function that takes each terminal's output; it blocks if the reader stalls."""
        return {number: line.write for number, line in self._lines.items()}

    def direct(self, number: int) -> Direct | None:
        """Return a terminal's descriptor for code in C; see Output.direct."""
        return self._lines[number].output.direct()

    def set_blocking(self, blocking: bool) -> None:
        """Set whether writers wait for slow readers: vCPUs that are being stopped must not wait."""
        for line in self._lines.values():
            line.output.set_blocking(blocking)

    def attach(self, guest: GuestInput, loop: Loop) -> Callable[[], None]:
        """Carry input to a guest, in that loop, until the returned function is called."""
        undo = ExitStack()
        for number, line in self._lines.items():
            send = functools.partial(guest.send, terminal=number)
            keyboard = Input(loop, send, _no_key, line.reader, line.split)
            guest.on_room(keyboard.resume, terminal=number)
            line.start()
            line.records.on_size = guest.resize if number == 0 else None
            keyboard.start()
            undo.callback(keyboard.pause)
        return undo.close


def _no_key(key: Key) -> None:
    """Ignore a key: these terminals have none."""
