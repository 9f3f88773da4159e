"""The virtio console: one port, with the terminal's size and an emergency write.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.3; linux/virtio_console.h.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Protocol

from pyvmm.devices.state import StateField
from pyvmm.devices.virtio.device import ConfigField, Feature, QueueSpec
from pyvmm.devices.virtio.exitserved import ExitPath, ExitServed, TakenBack
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory.ram import Memory

F_SIZE = Feature(0, "CONSOLE_F_SIZE")
F_EMERG_WRITE = Feature(2, "CONSOLE_F_EMERG_WRITE")

OUTPUT_BLOCK = 64 << 10  # the most bytes that ``output`` gets in one call
WAIT_S = 2.0  # without output; then a driver gets input even if it has not read the size
MAX_WAITS = 10  # waits with output, before the driver gets input anyway

# Calls back after so many seconds, in any thread; calling its result cancels that.
Later = Callable[[float, Callable[[], None]], Callable[[], None]]


def after(delay_s: float, action: Callable[[], None]) -> Callable[[], None]:
    """Call back in a thread of its own."""
    timer = threading.Timer(delay_s, action)
    timer.daemon = True
    timer.start()
    return timer.cancel


class InputPath(ExitPath, Protocol):
    """A console's data path, which takes input too while it has the queues."""

    @property
    def has_transmitted(self) -> bool:
        """Whether the guest has output bytes during the loan."""

    def receive(self, data: bytes) -> int:
        """Put input into the guest's buffers; return the number of bytes taken."""

    def read(self, fd: int) -> int:
        """Read input into the guest's buffers, without waiting; return the number of bytes."""


class VirtioConsole(ExitServed):
    """One port: ``output`` gets the guest's output, `receive` takes its input.

    ``output`` may block: then the kicking vCPU waits in its exit, as at a UART. So exits serve
    transmitq. Linux's driver spins for a buffer's return with interrupts off (__send_to_port() in
    drivers/char/virtio_console.c). A guest may power off right after its last output, which is
    complete by then. A reset does not wait for ``output``.

    After `receive` has left bytes with its caller, the device calls ``on_room``, if set, once the
    guest has added buffers; without locks, from any thread.

    Input waits until the driver is ready. Linux's driver adds buffers before it has a terminal,
    and drops their input (in_intr() of the same file). It reads the terminal's size only later,
    after a configuration change: so the device signals one at once. Input waits at most WAIT_S for
    a driver without output, and not at all for a driver without F_SIZE.

    With a data path (kvm/datapath/console.c), C outputs what the host takes at once, and puts
    input into the guest's buffers. Python does the rest: it waits for the host and for the guest.
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
        self._starved = False  # receive() left bytes with its caller
        self._waits_left = 0  # waits for the driver to be ready; 0: it is
        self._cancel: Callable[[], None] | None = None  # cancels the wait
        self._printed = False  # the driver has transmitted since the wait began
        self._has_transmitted = False
        self._input: InputPath | None = None  # the data path
        self._output_lock = threading.Lock()  # held from taking a chain to the end of its output

    def use_input_path(self, path: InputPath | None) -> None:
        """Lend the queues to ``path`` from the next kick on; None: never."""
        self.use_data_path(path)
        self._input = path

    @property
    def has_transmitted(self) -> bool:
        """Whether the guest has sent output."""
        return self._has_transmitted or (self._input is not None and self._input.has_transmitted)

    @property
    def ready_for_input(self) -> bool:
        """Whether the driver is ready for input."""
        return not self._waits_left

    def receive(self, data: bytes) -> int:
        """Put input into the guest's buffers; return the number of bytes taken."""
        taken = self._input.receive(data) if self._input is not None else 0
        return taken if taken == len(data) else taken + self._receive(data[taken:])

    def read(self, fd: int) -> int:
        """Read input into the guest's buffers, without waiting; return the number of bytes.

        If it returns 0, there may be input that only `receive` can take.
        """
        return self._input.read(fd) if self._input is not None else 0

    def taken_back(self, back: TakenBack) -> None:
        """Note whether the guest has sent output; with the lock."""
        if back.chains or back.skip:
            self._printed = self._has_transmitted = True

    def _receive(self, data: bytes) -> int:
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
            self.lend_queues()
        return taken

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of the guest's terminal, in characters."""
        with self.lock:
            if (cols, rows) != (self.cols, self.rows):
                self.cols, self.rows = cols, rows
                self.config_changed()

    def notify(self, queue: Virtqueue) -> None:
        """Use new buffers for input, or output the content of the guest's buffers."""
        if queue is self.receiveq:
            self._offer_room()
        else:
            self._transmit()

    def activate(self) -> None:
        """Wait until the driver reads the terminal's size."""
        if self.has(F_SIZE):
            self._waits_left = MAX_WAITS
            self._wait()
            self.config_changed()

    def deactivate(self) -> None:
        """Stop waiting for the driver."""
        self._waits_left = self.skip = 0
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def restore_own(self, state: object, where: str) -> None:
        """Wait for a driver that was not ready at the save."""
        if self._waits_left and self._cancel is None:
            self._wait()

    def read_config(self, offset: int, length: int) -> int:
        """Return the driver's read; a driver that reads the size is ready."""
        if self._waits_left and offset < type(self).max_nr_ports.offset:
            self.deactivate()
            self.defer(self._offer_room)
        return super().read_config(offset, length)

    def write_config(self, offset: int, length: int, value: int) -> None:
        """Output a character of the driver's emergency write."""
        if offset == type(self).emerg_wr.offset:
            self._has_transmitted = True
            self.defer(functools.partial(self.output, bytes([value & 0xFF])))

    def _next_input(self) -> Chain | None:
        """Take the next buffer for input; without one, ask for a kick."""
        if self._waits_left or not self.live:
            return None
        chain = self.next_chain(self.receiveq)
        if chain is not None and (chain.readable or not chain.writable):
            raise QueueError(f"receiveq chain {chain.head} must have writable buffers only")
        return chain

    def _offer_room(self) -> None:
        """Call on_room if `receive` left bytes and there is room now."""
        due = False
        with self.guard:
            ready = self.live and not self._waits_left
            due = self._starved and ready and self.receiveq.has_chains()
            self._starved = self._starved and not due
        if due and self.on_room is not None:
            self.on_room()

    def _wait(self) -> None:
        """Start one wait for the driver; with the lock."""
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
        """Output the queued chains in order."""
        with self._output_lock:
            while (chain := self.pop(self.transmitq)) is not None:
                self._printed = self._has_transmitted = True
                try:
                    self._output_chain(chain)
                finally:  # release guest RAM even after an error
                    self.push(self.transmitq, chain, 0)
            with self.guard:
                self.skip = 0
                self.lend_queues()

    def _output_chain(self, chain: Chain) -> None:
        if chain.writable:
            with self.lock:
                self.fail(f"transmitq chain {chain.head} has a writable buffer")
        skip, self.skip = self.skip, 0
        for data in chain.pieces(OUTPUT_BLOCK):
            if not self.transmitq.owns(chain):  # after a reset or a stop
                break
            if skip < len(data):
                self.output(data[skip:])
            skip = max(0, skip - len(data))
