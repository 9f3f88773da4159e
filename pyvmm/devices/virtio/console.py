"""The virtio console: one port, with the terminal's size and an emergency write.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.3; linux/virtio_console.h.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from pyvmm.devices.state import StateField
from pyvmm.devices.virtio.device import ConfigField, Feature, QueueSpec, VirtioDevice
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory.ram import Memory

F_SIZE = Feature(0, "CONSOLE_F_SIZE")
F_EMERG_WRITE = Feature(2, "CONSOLE_F_EMERG_WRITE")

OUTPUT_BLOCK = 64 << 10  # bytes given to ``output`` at once
WAIT_S = 2.0  # without output, until a driver that has not looked at the size gets input
MAX_WAITS = 10  # that many times with output, it gets it all the same

# Calls back after so many seconds, in whatever thread, unless what it returns is called before.
Later = Callable[[float, Callable[[], None]], Callable[[], None]]


def after(delay_s: float, action: Callable[[], None]) -> Callable[[], None]:
    """Call back in a thread of its own."""
    timer = threading.Timer(delay_s, action)
    timer.daemon = True
    timer.start()
    return timer.cancel


class VirtioConsole(VirtioDevice):
    """One port: ``output`` gets what the guest writes, `receive` takes what it is to read.

    ``output`` may block: the vCPU that kicked then waits in its exit, as at a UART. That is why
    transmitq is served by exits: Linux's driver spins for a buffer's return with interrupts off
    (__send_to_port() in drivers/char/virtio_console.c), and a guest that has said its last word
    may switch itself off at once; the word is out by then. A reset does not wait for ``output``.

    ``on_room``, when set, is called after `receive` could not take everything and the guest has
    given buffers; without locks, from any thread.

    Input waits until the driver has settled. Linux's gives buffers before it has a terminal for
    what comes in them, and throws both away (in_intr() of the same file). But it looks at the
    terminal's size only afterwards, and only when told that it changed: so we tell it so at once.
    A driver without F_SIZE, or one that has not looked after WAIT_S, is taken to have settled.
    """

    device_id = 3
    name = "virtio-console"
    features = (F_SIZE, F_EMERG_WRITE)
    queue_specs = (QueueSpec("receiveq", 64), QueueSpec("transmitq", 64, by_exit=True))

    state_fields = (
        StateField("cols", 0, 0xFFFF),
        StateField("rows", 0, 0xFFFF),
        StateField("_waits_left", 0, MAX_WAITS, key="settling"),
    )

    cols = ConfigField(0, 2, "columns of the terminal; 0: not known")
    rows = ConfigField(2, 2, "rows of the terminal; 0: not known")
    max_nr_ports = ConfigField(4, 4, "ports, with F_MULTIPORT, which is not offered")
    emerg_wr = ConfigField(8, 4, "a character to output at once, before any set-up")

    def __init__(
        self,
        memory: Memory,
        output: Callable[[bytes], None],
        log: Callable[[str], None],
        later: Later = after,
    ) -> None:
        super().__init__(memory, log)
        self.output = output
        self.later = later
        self.on_room: Callable[[], None] | None = None
        self.receiveq, self.transmitq = self.queues
        self._starved = False  # receive() left something with its caller
        self._waits_left = 0  # how often we shall still wait for the driver
        self._cancel: Callable[[], None] | None = None  # the wait
        self._printed = False  # since the wait began
        self._output_lock = threading.Lock()  # held from taking a chain until it is out

    def receive(self, data: bytes) -> int:
        """Put input into the guest's buffers; returns how many bytes there was room for."""
        taken = 0
        with self.guard:
            while taken < len(data) and (chain := self._next_input()) is not None:
                written = chain.write(data[taken : taken + chain.writable_size])
                self.receiveq.push(chain, written)
                taken += written
            self._starved = taken < len(data)
            if not self._starved:
                self.receiveq.disable_kicks()
            self.signal(self.receiveq)
        return taken

    def resize(self, cols: int, rows: int) -> None:
        """Tell the guest the size of its terminal, in characters."""
        with self.lock:
            if (cols, rows) != (self.cols, self.rows):
                self.cols, self.rows = cols, rows
                self.config_changed()

    def notify(self, queue: Virtqueue) -> None:
        """The driver has put buffers into a queue."""
        if queue is self.receiveq:
            self._offer_room()
        else:
            self._transmit()

    def activate(self) -> None:
        """Let the driver settle."""
        if self.has(F_SIZE):
            self._waits_left = MAX_WAITS
            self._wait()
            self.config_changed()

    def deactivate(self) -> None:
        """Stop waiting for the driver."""
        self._waits_left = 0
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def restore_own(self, state: object, where: str) -> None:
        """A driver that had not settled is waited for anew."""
        if self._waits_left and self._cancel is None:
            self._wait()

    def read_config(self, offset: int, length: int) -> int:
        """What the driver reads; one that looks at the size has settled."""
        if self._waits_left and offset < type(self).max_nr_ports.offset:
            self.deactivate()
            self.defer(self._offer_room)
        return super().read_config(offset, length)

    @emerg_wr.write
    def _(self, value: int) -> None:
        self.defer(functools.partial(self.output, bytes([value & 0xFF])))

    def _next_input(self) -> Chain | None:
        """The next buffer for input; when there is none, the driver's next one kicks."""
        if self._waits_left or not self.live:
            return None
        chain = self.next_chain(self.receiveq)
        if chain is not None and (chain.readable or not chain.writable):
            raise QueueError(f"receiveq chain {chain.head}: not a buffer to write to")
        return chain

    def _offer_room(self) -> None:
        """Ask for input again, if some was left behind and there is room now."""
        due = False
        with self.guard:
            ready = self.live and not self._waits_left
            due = self._starved and ready and self.receiveq.has_chains()
            self._starved = self._starved and not due
        if due and self.on_room is not None:
            self.on_room()

    def _wait(self) -> None:
        """Come back in a while; with the lock."""
        self._printed = False
        self._cancel = self.later(WAIT_S, self._wait_is_over)

    def _wait_is_over(self) -> None:
        with self.lock:
            if not self._waits_left:
                return
            self._cancel = None
            self._waits_left = self._waits_left - 1 if self._printed else 0
            if self._waits_left:
                self._wait()
        self._offer_room()

    def _transmit(self) -> None:
        """Output what the driver has queued, a chain after the other."""
        with self._output_lock:
            while (chain := self.pop(self.transmitq)) is not None:
                self._printed = True
                try:
                    self._output_chain(chain)
                finally:  # whatever becomes of the output, guest RAM is let go
                    self.push(self.transmitq, chain, 0)

    def _output_chain(self, chain: Chain) -> None:
        if chain.writable:
            with self.lock:
                self.fail(f"transmitq chain {chain.head}: a buffer to write to")
        for data in chain.pieces(OUTPUT_BLOCK):
            if not self.transmitq.owns(chain):  # there was a reset, or the end of the machine
                break
            self.output(data)
