"""Input of a guest's console and its other UARTs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyvmm.devices.uart8250 import Uart8250
from pyvmm.errors import VmmError

if TYPE_CHECKING:  # imported lazily: few machines have it
    from pyvmm.devices.virtio.console import VirtioConsole


class Console:
    """The guest's console: terminal 0. Terminals 1 to 3 are its other UARTs."""

    def __init__(self, console: Uart8250 | VirtioConsole, uarts: Sequence[Uart8250]) -> None:
        self._console = console
        self._terminals = [console, *uarts[1:]]

    def send(self, data: bytes, terminal: int = 0) -> int:
        """Send input to the guest; return how many bytes it had room for."""
        return self._terminals[terminal].receive(data)

    def read(self, fd: int) -> int:
        """Read input for the console from a descriptor, without waiting; return the bytes read.

        If it returns 0, there may be input that only ``send`` can take.
        """
        return 0 if isinstance(self._console, Uart8250) else self._console.read(fd)

    @property
    def unread(self) -> bytes:
        """The input that a serial console holds until the guest reads it."""
        return self._console.unread if isinstance(self._console, Uart8250) else b""

    def send_break(self) -> None:
        """Send a break to the guest's console, which Linux takes as its SysRq key.

        Raises: VmmError, if the console has no break or the guest has no room for one.
        """
        if not isinstance(self._console, Uart8250):
            raise VmmError(
                "a virtio console has no break",
                hint="use `console`=serial, or type Ctrl-O, which Linux's hvc takes as a break",
            )
        if not self._console.receive_break():
            raise VmmError("the guest reads nothing from its console: there is no room for a break")

    def on_room(self, callback: Callable[[], None], terminal: int = 0) -> None:
        """Set the function to call, in any thread, when ``send`` has room again."""
        self._terminals[terminal].on_room = callback

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size of its console's terminal; a serial console cannot."""
        if not isinstance(self._console, Uart8250):
            self._console.resize(columns, rows)
