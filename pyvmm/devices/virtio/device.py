"""What every virtio device has: features, a status, queues and a configuration space.

    class VirtioConsole(VirtioDevice):
        device_id = 3
        features = (Feature(0, "F_SIZE"),)
        queue_specs = (QueueSpec("receiveq", 64), QueueSpec("transmitq", 64))

        cols = ConfigField(0, 2, "columns of the terminal")

A device fills in `notify` and, where it must, `activate` and `deactivate`; a transport shows it to
the guest.

In a snapshot a device is its status, features, queues and configuration, and what it declares:

- ``kept`` names attributes that come back as they were; among them the ConfigFields that change
  while the guest runs.  Every other ConfigField is what this machine made the device with, and
  must be the same where it is restored;
- `drain` makes it give back the chains it has taken;
- `own_state` and `restore_own` are for what no attribute is.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, chapters 2, 3 and 6; linux/virtio_config.h.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, overload

from pyvmm.devices.state import StateError, StateField, restore_fields, save_fields, section
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory.ram import Memory

# Device status.  Source: VIRTIO 1.2, 2.1
STATUS_ACKNOWLEDGE = 0x01
STATUS_DRIVER = 0x02
STATUS_DRIVER_OK = 0x04
STATUS_FEATURES_OK = 0x08
STATUS_NEEDS_RESET = 0x40  # the device's own
STATUS_FAILED = 0x80
STATUS_BY_DRIVER = (
    STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK | STATUS_FEATURES_OK | STATUS_FAILED
)
STATUS_NAMES = {
    STATUS_ACKNOWLEDGE: "ACKNOWLEDGE",
    STATUS_DRIVER: "DRIVER",
    STATUS_FEATURES_OK: "FEATURES_OK",
    STATUS_DRIVER_OK: "DRIVER_OK",
    STATUS_NEEDS_RESET: "NEEDS_RESET",
    STATUS_FAILED: "FAILED",
}

# Interrupts.  Source: linux/virtio_mmio.h
INT_VRING = 0x1  # used buffers
INT_CONFIG = 0x2  # the configuration changed, or the status did

COMPLAINTS = 8  # lines that one device may write about its driver


class Feature(NamedTuple):
    """A feature bit."""

    bit: int
    name: str


# Source: VIRTIO 1.2, chapter 6
RING_INDIRECT_DESC = Feature(28, "RING_F_INDIRECT_DESC")
RING_EVENT_IDX = Feature(29, "RING_F_EVENT_IDX")
VERSION_1 = Feature(32, "F_VERSION_1")
ANY_LAYOUT = Feature(27, "F_ANY_LAYOUT")

MODERN_FEATURES = (RING_INDIRECT_DESC, RING_EVENT_IDX, VERSION_1)
LEGACY_FEATURES = (RING_INDIRECT_DESC, RING_EVENT_IDX, ANY_LAYOUT)


class QueueSpec(NamedTuple):
    """A queue as a device declares it.

    A kick of a ``by_exit`` queue is served by the vCPU that kicks, before it goes on: for a queue
    whose driver waits for the answer anyway, or that must hold the guest up where the host is slow.
    """

    name: str
    max_size: int
    by_exit: bool = False


Setter = Callable[[Any, int], None]

# What snapshots have of every device
STATE_FIELDS = (
    StateField("status", 0, 0xFF),
    StateField("driver_features", 0, (1 << 64) - 1),
    StateField("config_generation", 0, 0xFFFF_FFFF),
)


class ConfigField:
    """A little-endian field of the configuration space; an int attribute of the device.

    The driver reads what the attribute says; what it writes goes to the method decorated with
    `write`, and nowhere where there is none.
    """

    def __init__(self, offset: int, size: int, meaning: str) -> None:
        self.offset = offset
        self.size = size
        self.meaning = meaning
        self.name = ""
        self.writer: Setter | None = None

    def write(self, handler: Setter) -> Setter:
        """Decorate the method that takes what the driver writes."""
        self.writer = handler
        return handler

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: VirtioDevice, owner: type) -> int: ...
    def __get__(self, device: VirtioDevice | None, owner: type) -> Self | int:
        return self if device is None else 0  # as long as the device has set nothing


class VirtioDevice:
    """The base of virtio devices: status, negotiation, queues, and what a broken driver leads to.

    ``lock`` guards everything, guest memory in the queues included; ``guard`` is the lock and an
    end to the device where a queue turns out to break the rules. Hooks say whether they run with
    it. ``log`` gets one line for a driver that breaks the rules.
    """

    device_id: ClassVar[int]
    name: ClassVar[str]
    features: tuple[Feature, ...] = ()  # an instance may have more or fewer than its class
    queue_specs: ClassVar[tuple[QueueSpec, ...]]
    config_fields: ClassVar[tuple[ConfigField, ...]] = ()
    state_fields: ClassVar[tuple[StateField, ...]] = ()
    gives_memory: ClassVar[bool] = False  # queues may lie in memory that its state speaks of
    counted: ClassVar[tuple[str, ...]] = ()  # what `pyvmm stat` shows of it

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.config_fields += tuple(f for f in vars(cls).values() if isinstance(f, ConfigField))

    def __init__(self, memory: Memory, log: Callable[[str], None]) -> None:
        self.lock = threading.Lock()
        self.guard = Guard(self)
        self.log = log
        self.legacy = False  # set by the transport
        self.interrupt: Callable[[int], None] = _nobody_listens  # set by the transport
        self.queues = [Virtqueue(memory, spec.name, spec.max_size) for spec in self.queue_specs]
        self.status = 0
        self.driver_features = 0
        self.config_generation = 0
        self.stopped = False
        self.backing = ""  # what of this machine's is behind it, for people
        self.counts = dict.fromkeys(self.counted, 0)
        self._complaints = self._reports = 0
        self._deferred: deque[Callable[[], None]] = deque()

    # For a device

    def notify(self, queue: Virtqueue) -> None:
        """The driver has put buffers into a queue; without the lock, from any thread."""

    def activate(self) -> None:
        """The driver is ready; with the lock."""

    def deactivate(self) -> None:
        """A reset, or the end: forget the driver; with the lock, and maybe during a `notify`."""

    def drain(self) -> None:
        """Give back every chain that was taken; without the lock, while no vCPU runs."""

    def own_state(self) -> dict[str, Any]:
        """What a snapshot has of this device beyond ``kept``, as JSON has it; with the lock."""
        return {}

    def restore_own(self, state: object, where: str) -> None:
        """Become what `own_state` gave, before the queues do; with the lock.

        Raises: StateError, see pyvmm.devices.state.
        """

    @property
    def live(self) -> bool:
        """Whether the queues are to be served."""
        status = self.status
        if self.stopped or status & (STATUS_FAILED | STATUS_NEEDS_RESET):
            return False
        # Legacy drivers may kick before DRIVER_OK.  Source: VIRTIO 1.2, 3.1.2
        return self.legacy or bool(status & STATUS_DRIVER_OK)

    def has(self, feature: Feature) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.driver_features >> feature.bit & 1)

    def pop(self, queue: Virtqueue) -> Chain | None:
        """Take a queue's next chain, if the device is live; if there is none, ask for a kick.

        Takes the lock, as `has_work` and `push` do.
        """
        chain = None
        with self.guard:
            if self.live:
                chain = self.next_chain(queue)
        return chain

    def has_work(self, queue: Virtqueue) -> bool:
        """Whether `pop` would find a chain; a look at the rings alone."""
        found = False
        with self.guard:
            found = self.live and queue.has_chains()
        return found

    def next_chain(self, queue: Virtqueue) -> Chain | None:
        """A live queue's next chain; if there is none, ask for a kick. In ``guard``."""
        return queue.pop() if queue.waiting or queue.enable_kicks() else None

    def push(self, queue: Virtqueue, chain: Chain, written: int) -> None:
        """Give a chain back, and interrupt the driver if it wants that."""
        with self.lock:
            queue.push(chain, written)
            self.signal(queue)

    def signal(self, queue: Virtqueue) -> None:
        """Interrupt the driver for what was pushed, if it wants that; with the lock."""
        if queue.needs_interrupt():
            self.interrupt(INT_VRING)

    def config_changed(self) -> None:
        """Tell the driver that a field has a new value; with the lock."""
        self.config_generation = (self.config_generation + 1) & 0xFFFF_FFFF
        if self.status & STATUS_DRIVER_OK:
            self.interrupt(INT_CONFIG)

    def fail(self, what: str) -> None:
        """Stop, because the driver broke a rule, until it resets the device; with the lock."""
        if self.status & STATUS_NEEDS_RESET:
            return
        self.status |= STATUS_NEEDS_RESET
        for queue in self.queues:
            self.signal(queue)  # what was done before that is not lost
            queue.disable()
        self._complain(what)
        if self.status & STATUS_DRIVER_OK:
            self.interrupt(INT_CONFIG)

    def count(self, **more: int) -> None:
        """Add to the device's counts; takes the lock."""
        with self.lock:
            for name, number in more.items():
                self.counts[name] += number

    def report(self, what: str) -> None:
        """Log what this machine refuses the device, until that was often enough; from any thread.

        A guest can ask for the same again and again.
        """
        self._reports += 1
        if self._reports <= COMPLAINTS:
            last = "; no more is said of it" if self._reports == COMPLAINTS else ""
            self.log(f"{self.name} {self.backing}: {what}{last}")

    def defer(self, action: Callable[[], None]) -> None:
        """Leave something for `run_deferred`, which runs without the lock; with the lock."""
        self._deferred.append(action)

    # For whoever runs the machine

    def state(self) -> dict[str, Any]:
        """All that the device is at the moment, as JSON has it; with the lock, no vCPU runs.

        It is drained, and no chain is out.
        """
        return {
            "name": self.name,
            **save_fields(self, STATE_FIELDS),
            "config": {field.name: getattr(self, field.name) for field in self.config_fields},
            "kept": save_fields(self, self.state_fields),
            "own": self.own_state(),
            "queues": [queue.state() for queue in self.queues],
        }

    def restore(self, state: object, where: str) -> None:
        """Become what `state` gave; ``where`` is what messages call that.

        Nothing is served before `look_into_queues`.

        Raises: StateError, when this device cannot be like that.
        """
        with self.lock:
            restore_fields(self, STATE_FIELDS, state, where)
            self._refuse_other_config(section(state, "config", where))
            restore_fields(self, self.state_fields, section(state, "kept", where), f"{where}.kept")
            self.restore_own(section(state, "own", where), f"{where}.own")
            queues = state.get("queues") if isinstance(state, Mapping) else None
            if not isinstance(queues, list) or len(queues) != len(self.queues):
                raise StateError(f"{where}.queues are not {len(self.queues)} queues")
            for queue, its in zip(self.queues, queues, strict=True):
                self._tell_features(queue)
                queue.restore(its, f"{where}.{queue.name}")

    def _refuse_other_config(self, config: Mapping[str, Any]) -> None:
        kept = {item.attribute for item in self.state_fields}
        for field in self.config_fields:
            now, then = getattr(self, field.name), config.get(field.name)
            if field.name not in kept and then != now:
                raise StateError(
                    f"{self.name}: its {field.name} was {str(then)[:40]}, and is {now} here "
                    f"({field.meaning})"
                )

    def look_into_queues(self) -> None:
        """Serve, by `run_deferred`, what waits in queues unkicked; with the lock."""
        if self.live:
            for queue in self.queues:
                self.defer(functools.partial(self._look_into, queue))

    def describe(self) -> dict[str, Any]:
        """What the device is and how it stands, as JSON has it."""
        with self.lock:
            return {
                "device": self.name,
                "backing": self.backing,
                "legacy": self.legacy,
                "status": [name for bit, name in STATUS_NAMES.items() if self.status & bit],
                "features": [f.name for f in self.known_features if self.has(f)],
                "config": {f.name: getattr(self, f.name) for f in self.config_fields},
                "queues": [queue.describe() for queue in self.queues],
                "counts": dict(self.counts),
            }

    def stop(self) -> None:
        """Serve nothing from now on and let go of guest memory: the machine is at its end."""
        with self.lock:
            self.stopped = True
            for queue in self.queues:
                queue.disable()
            self.deactivate()

    # For a transport: with the lock, but for run_deferred

    @property
    def offered(self) -> int:
        """The features the device offers, a bit each."""
        return sum(1 << feature.bit for feature in self.known_features)

    @property
    def known_features(self) -> tuple[Feature, ...]:
        """The features the device offers, its own first."""
        return (*self.features, *(LEGACY_FEATURES if self.legacy else MODERN_FEATURES))

    def write_features(self, word: int, value: int) -> None:
        """Take 32 bits of the features the driver accepts; ignored once negotiation is over."""
        over = STATUS_DRIVER_OK if self.legacy else STATUS_FEATURES_OK
        if word > 1 or self.status & over:
            return
        self.driver_features &= ~(0xFFFF_FFFF << 32 * word)
        self.driver_features |= value << 32 * word
        for queue in self.queues:
            self._tell_features(queue)

    def write_status(self, value: int) -> None:
        """Take the status the driver writes: 0 resets; bits that are set stay set."""
        if value == 0:
            self.reset()
            return
        new = value & STATUS_BY_DRIVER & ~self.status
        if not self._acceptable():
            new &= ~STATUS_FEATURES_OK
        if new & STATUS_DRIVER_OK and not (self.legacy or (self.status | new) & STATUS_FEATURES_OK):
            self.fail("sets DRIVER_OK without FEATURES_OK")
            return
        self.status |= new
        if new & STATUS_DRIVER_OK and self.live:
            self.activate()
            self.look_into_queues()

    def reset(self) -> None:
        """Begin anew; what is being worked on is dropped."""
        self.status = self.driver_features = 0
        for queue in self.queues:
            queue.reset()
        self.deactivate()

    def read_config(self, offset: int, length: int) -> int:
        """What the driver reads of the configuration space; 0 beyond its end."""
        value = 0
        for field in self.config_fields:
            shift = 8 * (field.offset - offset)
            content = getattr(self, field.name) & (1 << 8 * field.size) - 1
            if -8 * field.size < shift < 8 * length:
                value |= content << shift if shift >= 0 else content >> -shift
        return value & (1 << 8 * length) - 1

    def write_config(self, offset: int, length: int, value: int) -> None:
        """What the driver writes to the configuration space; ignored where no field takes it."""
        for field in self.config_fields:
            if field.offset == offset and field.writer is not None:
                field.writer(self, value & (1 << 8 * min(length, field.size)) - 1)

    def run_deferred(self) -> None:
        """Do what `defer` was given; without the lock."""
        while self._deferred:
            try:
                action = self._deferred.popleft()
            except IndexError:  # another thread was quicker
                return
            action()

    def _tell_features(self, queue: Virtqueue) -> None:
        queue.event_idx = self.has(RING_EVENT_IDX)
        queue.indirect = self.has(RING_INDIRECT_DESC)

    def _look_into(self, queue: Virtqueue) -> None:
        """Serve what was put into a queue before it was live; without the lock."""
        if self.has_work(queue):
            self.notify(queue)

    def _acceptable(self) -> bool:
        """Whether the driver accepts only what is offered, and what it must."""
        must = 0 if self.legacy else 1 << VERSION_1.bit
        return self.driver_features & ~self.offered == 0 and self.driver_features & must == must

    def _complain(self, what: str) -> None:
        """Log a line, until there have been too many: a guest must not fill a disk."""
        self._complaints += 1
        if self._complaints <= COMPLAINTS:
            last = "; no more is said of it" if self._complaints == COMPLAINTS else ""
            self.log(f"{self.name}: the guest's driver is broken, its device stops: {what}{last}")


class Guard:
    """Holds a device's lock, and stops the device on a QueueError, which goes no further."""

    __slots__ = ("_device",)

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device

    def __enter__(self) -> None:
        self._device.lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        try:
            if isinstance(error, QueueError):
                self._device.fail(error.message)
                return True
            return False
        finally:
            self._device.lock.release()


def _nobody_listens(reasons: int) -> None:
    """Stand for the transport's interrupt until there is one."""
