"""The base of virtio devices: features, a status, queues and a configuration space.

    class VirtioConsole(VirtioDevice):
        device_id = 3
        features = (Feature(0, "F_SIZE"),)
        queue_specs = (QueueSpec("receiveq", 64), QueueSpec("transmitq", 64))

        cols = ConfigField(0, 2, "columns of the terminal")

A device implements `notify` and, if needed, `activate` and `deactivate`. A transport connects it
to the guest.

A snapshot holds a device's status, features, queues and configuration. A device also declares:

- ``state_fields``: attributes to save and restore, among them the ConfigFields that change while
  the guest runs. Every other ConfigField must be equal in the restoring machine;
- `drain`, which returns the chains it has taken;
- `own_state` and `restore_own`, for state that is not a plain attribute.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, chapters 2, 3 and 6; linux/virtio_config.h.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ClassVar, Self, overload

from pyvmm.base.records import Record
from pyvmm.devices.state import StateError, StateField, restore_fields, save_fields, section
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory.ram import Memory

# Device status.  Source: VIRTIO 1.2, 2.1
STATUS_ACKNOWLEDGE = 0x01
STATUS_DRIVER = 0x02
STATUS_DRIVER_OK = 0x04
STATUS_FEATURES_OK = 0x08
STATUS_NEEDS_RESET = 0x40  # set by the device
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

COMPLAINTS = 8  # log lines of one device about its driver


class Feature(Record):
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


class QueueSpec(Record):
    """A queue's declaration.

    The kicking vCPU serves a ``by_exit`` queue before it resumes. That suits a queue whose driver
    waits for the reply anyway, and a queue that must slow the guest down on a slow host.
    """

    name: str
    max_size: int
    by_exit: bool = False


# The saved state of every device
STATE_FIELDS = (
    StateField("status", 0, 0xFF),
    StateField("driver_features", 0, (1 << 64) - 1),
    StateField("config_generation", 0, 0xFFFF_FFFF),
)


class ConfigField:
    """A little-endian field of the configuration space; an int attribute of the device.

    The driver reads the attribute's value.
    """

    def __init__(self, offset: int, size: int, meaning: str) -> None:
        self.offset = offset
        self.size = size
        self.meaning = meaning
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: VirtioDevice, owner: type) -> int: ...
    def __get__(self, device: VirtioDevice | None, owner: type) -> Self | int:
        return self if device is None else 0  # until the device sets the attribute


class VirtioDevice:
    """A virtio device: status, feature negotiation, queues, and a stop for a broken driver.

    ``lock`` guards everything, the queues' guest memory included. ``guard`` takes the lock, and
    stops the device on a QueueError. Each hook documents whether it runs with the lock. ``log``
    gets one line for a driver that breaks the rules.
    """

    device_id: ClassVar[int]
    name: ClassVar[str]
    features: tuple[Feature, ...] = ()  # an instance may have more or fewer than its class
    queue_specs: ClassVar[tuple[QueueSpec, ...]]
    config_fields: ClassVar[tuple[ConfigField, ...]] = ()
    state_fields: ClassVar[tuple[StateField, ...]] = ()
    gives_memory: ClassVar[bool] = False  # its restore maps memory, in which queues may lie
    counted: ClassVar[tuple[str, ...]] = ()  # names of ``counts``, for `pyvmm stat`
    unsaveable: ClassVar[str] = ""  # why a snapshot cannot have the device's state
    writes_unlogged: ClassVar[bool] = False  # guest memory is written without GuestMemory's log
    always_set: ClassVar[int] = 0  # bits of InterruptStatus that each read has

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.config_fields += tuple(f for f in vars(cls).values() if isinstance(f, ConfigField))

    def __init__(self, memory: Memory, log: Callable[[str], None]) -> None:
        self.lock = self._make_lock()
        self.guard = Guard(self)
        self.log = log
        self.legacy = False  # set by the transport
        self.interrupt: Callable[[int], None] = _no_transport  # set by the transport
        self.call_fd = -1  # an eventfd that pulses the interrupt; set by the machine
        self.queues = [Virtqueue(memory, spec.name, spec.max_size) for spec in self.queue_specs]
        self.status = 0
        self.driver_features = 0
        self.config_generation = 0
        self.stopped = False
        self.backing = ""  # the host's file, for people
        self.counts = dict.fromkeys(self.counted, 0)
        self._complaints, self._reports = itertools.count(1), itertools.count(1)
        self._deferred: deque[Callable[[], None]] = deque()

    def _make_lock(self) -> threading.Lock:
        return threading.Lock()

    # For a device

    def notify(self, queue: Virtqueue) -> None:
        """Serve a queue that the driver has kicked; without the lock, from any thread."""

    def activate(self) -> None:
        """Begin to work with a driver that has set DRIVER_OK; with the lock."""

    def deactivate(self) -> None:
        """Forget the driver, at a reset or a stop; with the lock, maybe during a `notify`."""

    def drain(self) -> None:
        """Return every chain taken; without the lock, while no vCPU runs."""

    def proceed(self) -> None:
        """Continue after `drain`, before vCPUs run; without the lock."""

    def own_state(self) -> dict[str, Any]:
        """Return the state beyond ``state_fields``, for JSON; with the lock."""
        return {}

    def restore_own(self, state: object, where: str) -> None:
        """Restore the state that `own_state` returned, before the queues' state; with the lock.

        Raises: StateError.
        """

    @property
    def live(self) -> bool:
        """Whether the device serves its queues."""
        status = self.status
        if self.stopped or status & (STATUS_FAILED | STATUS_NEEDS_RESET):
            return False
        # Legacy drivers may kick before DRIVER_OK.  Source: VIRTIO 1.2, 3.1.2
        return self.legacy or bool(status & STATUS_DRIVER_OK)

    @property
    def has_driver(self) -> bool:
        """Whether the guest has a working driver."""
        return self.live and bool(self.status & STATUS_DRIVER_OK)

    def has(self, feature: Feature) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.driver_features >> feature.bit & 1)

    def pop(self, queue: Virtqueue) -> Chain | None:
        """Take a queue's next chain, if the device is live; without one, ask for a kick.

        It takes the lock, as `push` does.
        """
        chain = None
        with self.guard:
            if self.live:
                chain = self.next_chain(queue)
        return chain

    def next_chain(self, queue: Virtqueue) -> Chain | None:
        """Take a live queue's next chain; without one, ask for a kick. In ``guard``."""
        return queue.pop() if queue.waiting or queue.enable_kicks() else None

    def push(self, queue: Virtqueue, chain: Chain, written: int) -> None:
        """Return a chain to the driver, and interrupt the driver if it wants that."""
        with self.lock:
            queue.push(chain, written)
            self.signal(queue)

    def signal(self, queue: Virtqueue) -> None:
        """Interrupt the driver for pushed chains, if it wants that; with the lock."""
        if queue.needs_interrupt():
            self.interrupt(INT_VRING)

    def config_changed(self) -> None:
        """Signal a configuration change to the driver; with the lock."""
        self.config_generation = (self.config_generation + 1) & 0xFFFF_FFFF
        if self.status & STATUS_DRIVER_OK:
            self.interrupt(INT_CONFIG)

    def fail(self, what: str) -> None:
        """Stop until the driver, which broke a rule, resets the device; with the lock."""
        if self.status & STATUS_NEEDS_RESET:
            return
        self.status |= STATUS_NEEDS_RESET
        for queue in self.queues:
            self.signal(queue)  # for requests completed before
            queue.disable()
        self._need_reset(f"the guest's driver is broken, its device stops: {what}")

    def give_up(self, what: str) -> None:
        """Stop until a reset, because the host refuses what the device needs; with the lock."""
        self._need_reset(f"the device stops: {what}")

    def _need_reset(self, why: str) -> None:
        self.status |= STATUS_NEEDS_RESET
        self._log_few(next(self._complaints), f"{self.name}: {why}")
        if self.status & STATUS_DRIVER_OK:
            self.interrupt(INT_CONFIG)

    def count(self, **more: int) -> None:
        """Add to the device's counts; takes the lock."""
        with self.lock:
            for name, number in more.items():
                self.counts[name] += number

    def report(self, what: str) -> None:
        """Log a refusal by the host, at most COMPLAINTS times; from any thread."""
        self._log_few(next(self._reports), f"{self.name} {self.backing}: {what}")

    def defer(self, action: Callable[[], None]) -> None:
        """Queue an action for `run_deferred`, which runs without the lock; with the lock."""
        self._deferred.append(action)

    # For the machine

    def doorbell_fd(self, queue: int) -> int | None:
        """Return an eventfd whose signal has that queue served, if the device has one."""
        return None

    def watched(self) -> dict[int, Callable[[], None]]:
        """Return descriptors, and what the machine's loop calls when each is readable."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return the state of a drained device, for JSON; with the lock, while no vCPU runs."""
        return {
            "name": self.name,
            **save_fields(self, STATE_FIELDS),
            "config": {field.name: getattr(self, field.name) for field in self.config_fields},
            "kept": save_fields(self, self.state_fields),
            "own": self.own_state(),
            "queues": [queue.state() for queue in self.queues],
        }

    def restore(self, state: object, where: str) -> None:
        """Restore a saved state; ``where`` is its name in messages.

        The device serves its queues from `look_into_queues` on.

        Raises: StateError, for a state that is invalid or does not match this device.
        """
        with self.lock:
            restore_fields(self, STATE_FIELDS, state, where)
            self._refuse_other_config(section(state, "config", where))
            restore_fields(self, self.state_fields, section(state, "kept", where), f"{where}.kept")
            self.restore_own(section(state, "own", where), f"{where}.own")
            queues = state.get("queues") if isinstance(state, Mapping) else None
            if not isinstance(queues, list) or len(queues) != len(self.queues):
                raise StateError(f"{where}.queues are not {len(self.queues)} queues")
            for queue, saved in zip(self.queues, queues, strict=True):
                self._set_features(queue)
                queue.restore(saved, f"{where}.{queue.name}")

    def _refuse_other_config(self, config: Mapping[str, Any]) -> None:
        saved = {item.attribute for item in self.state_fields}
        for field in self.config_fields:
            now, then = getattr(self, field.name), config.get(field.name)
            if field.name not in saved and then != now:
                raise StateError(
                    f"{self.name}: its {field.name} was {str(then)[:40]}, and is {now} here "
                    f"({field.meaning})"
                )

    def look_into_queues(self) -> None:
        """Make `run_deferred` serve chains that were queued without a kick; with the lock."""
        if self.live:
            for queue in self.queues:
                self.defer(functools.partial(self._look_into, queue))

    def describe(self) -> dict[str, Any]:
        """Return the device's status, features, queues and counts, for JSON."""
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
        """Stop serving and release guest memory: the machine ends."""
        with self.lock:
            self.stopped = True
            for queue in self.queues:
                queue.disable()
            self.deactivate()

    # For a transport: with the lock, except run_deferred

    @property
    def offered(self) -> int:
        """The offered features, a bit each."""
        return sum(1 << feature.bit for feature in self.known_features)

    @property
    def known_features(self) -> tuple[Feature, ...]:
        """The offered features, the device's own first."""
        return (*self.features, *(LEGACY_FEATURES if self.legacy else MODERN_FEATURES))

    def write_features(self, word: int, value: int) -> None:
        """Set 32 bits of the driver's accepted features; ignore them after the negotiation."""
        over = STATUS_DRIVER_OK if self.legacy else STATUS_FEATURES_OK
        if word > 1 or self.status & over:
            return
        self.driver_features &= ~(0xFFFF_FFFF << 32 * word)
        self.driver_features |= value << 32 * word
        for queue in self.queues:
            self._set_features(queue)

    def write_status(self, value: int) -> None:
        """Handle the driver's write of the status: 0 resets; bits that are set stay set."""
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
        """Reset the device; drop the chains that it works on."""
        self.status = self.driver_features = 0
        for queue in self.queues:
            queue.reset()
        self.deactivate()

    def read_config(self, offset: int, length: int) -> int:
        """Return the driver's read of the configuration space; 0 beyond its end."""
        value = 0
        for field in self.config_fields:
            shift = 8 * (field.offset - offset)
            content = getattr(self, field.name) & (1 << 8 * field.size) - 1
            if -8 * field.size < shift < 8 * length:
                value |= content << shift if shift >= 0 else content >> -shift
        return value & (1 << 8 * length) - 1

    def write_config(self, offset: int, length: int, value: int) -> None:
        """Handle the driver's write to the configuration space; by default it has no effect."""

    def run_deferred(self) -> None:
        """Run the deferred actions; without the lock."""
        while self._deferred:
            try:
                action = self._deferred.popleft()
            except IndexError:  # another thread was quicker
                return
            action()

    def _set_features(self, queue: Virtqueue) -> None:
        queue.event_idx = self.has(RING_EVENT_IDX)
        queue.indirect = self.has(RING_INDIRECT_DESC)

    def _look_into(self, queue: Virtqueue) -> None:
        """Serve the chains put into a queue before it was live; without the lock."""
        found = False
        with self.guard:
            found = self.live and queue.has_chains()
        if found:
            self.notify(queue)

    def _acceptable(self) -> bool:
        """Return whether the driver accepts only offered features, and all required ones."""
        must = 0 if self.legacy else 1 << VERSION_1.bit
        return self.driver_features & ~self.offered == 0 and self.driver_features & must == must

    def _log_few(self, number: int, line: str) -> None:
        """Log a line with its number, at most COMPLAINTS: a guest must not fill a disk."""
        if number <= COMPLAINTS:
            self.log(line + "; further lines are left out" * (number == COMPLAINTS))


class Guard:
    """A device's lock that also stops the device on a QueueError, and suppresses the error."""

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


def _no_transport(reasons: int) -> None:
    """Ignore an interrupt before a transport is connected."""
