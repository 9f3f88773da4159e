"""A guest's terminals on pseudo-terminals of the machine its user sits at.

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
    from pyvmm.terminal.line import Line


class Guest(Protocol):
    """What terminals need of a machine."""

    def send(self, data: bytes, terminal: int = 0) -> int:
        """Type; returns how many bytes there was room for."""

    def on_room(self, callback: Callable[[], None], terminal: int = 0) -> None:
        """Say what to call when there is room again."""

    def resize(self, columns: int, rows: int) -> None:
        """Tell the size of terminal 0."""


class Terminals(Closing):
    """The terminals of those numbers, from when they are made until closed; a context manager.

    Raises:
        HostError: there is no pseudo-terminal left, or the way out of the emulated host fails.
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._lines: dict[int, Line] = {}
        with ExitStack() as undo:
            for number in sorted(numbers):
                from pyvmm.terminal.line import make_line  # late: most guests have a console alone

                self._lines[number] = make_line(number, undo)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Hang up, when readers have what was printed; idempotent."""
        self._undo.close()

    @property
    def paths(self) -> Mapping[int, str]:
        """Where each is found, as /dev/pts/5."""
        return {number: line.path for number, line in self._lines.items()}

    @property
    def outputs(self) -> Mapping[int, Callable[[bytes], None]]:
        """What takes that which the guest prints on each; it waits for a reader that stalls."""
        return {number: line.output.write for number, line in self._lines.items()}

    def let_go(self, hurry: bool = True) -> None:
        """Let nobody wait for a reader while vCPUs are to stop; ``hurry`` False: they run again."""
        for line in self._lines.values():
            line.output.let_go(hurry)

    def attach(self, guest: Guest, loop: Loop) -> Callable[[], None]:
        """Carry what is typed to a guest, in that loop, until what this returns is called."""
        undo = ExitStack()
        for number, line in self._lines.items():
            send = functools.partial(guest.send, terminal=number)
            keyboard = Input(loop, send, _no_key, line.reader, line.split)
            guest.on_room(keyboard.resume, terminal=number)
            line.records.on_size = guest.resize if number == 0 else None
            keyboard.start()
            undo.callback(keyboard.pause)
        return undo.close


def _no_key(key: Key) -> None:
    """Where no keys come from."""
