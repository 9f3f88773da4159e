"""Devices declared as the tables of their data sheets.

    class Pl031(Device):
        DR = Reg(0x000, "seconds now", ro=True)
        LR = Reg(0x008, "set the clock, seconds")

        @LR.write
        def _(self, value: int) -> None:
            ...

A register without handlers holds the last value written. ``rtc.LR`` is the register's value in one
device: a normal attribute. ``Pl031.LR`` is the declaration, with ``offset``, ``meaning`` and the
rest: emulation, traces and explanations use it.

Width rules, for accesses of 1, 2, 4 or 8 bytes:

- a read returns the bytes from its address on, within one register; bytes beyond it are 0;
- a write must be at a register's own address: a narrower write sets the register's other bytes
  to 0, a wider one loses its surplus bytes;
- without a register for such an access, a read returns 0 and a write does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar, Self, TypeVar, overload

from pyvmm.devices.state import StateField, restore_fields, save_fields, section

# The level of an interrupt line: called with True to raise it, with False to lower it.
Irq = Callable[[bool], None]

Reader = Callable[[Any], int]
Writer = Callable[[Any, int], None]
_R = TypeVar("_R", bound=Reader)
_W = TypeVar("_W", bound=Writer)

_MASK = {length: (1 << 8 * length) - 1 for length in (1, 2, 4, 8)}


class Reg:
    """One register: its offset, its meaning and its access rights.

    Registers of different banks may share an offset. While bank 1 is selected
    (`Device.select_bank`), its registers replace those of bank 0 at their offsets.
    """

    def __init__(
        self,
        offset: int,
        meaning: str,
        *,
        ro: bool = False,
        wo: bool = False,
        reset: int = 0,
        bank: int = 0,
    ) -> None:
        self.offset = offset
        self.meaning = meaning
        self.readable = not wo
        self.writable = not ro
        self.reset = reset
        self.bank = bank
        self.name = ""
        self.reader: Reader | None = None
        self.writer: Writer | None = None

    def read(self, handler: _R) -> _R:
        """Decorate the method that returns the value of a guest's read."""
        self.reader = handler
        return handler

    def write(self, handler: _W) -> _W:
        """Decorate the method that takes the value of a guest's write."""
        self.writer = handler
        return handler

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: Device, owner: type) -> int: ...
    def __get__(self, device: Device | None, owner: type) -> Self | int:
        # This class has no __set__, so Python finds the device's own attribute first, at full
        # speed. It calls this method only for a device without the attribute, and for the class.
        if device is not None:
            raise AttributeError(f"{self.name} has no value yet")
        return self

    def __repr__(self) -> str:
        return f"<{self.name} at {self.offset:#05x}: {self.meaning}>"


class Device:
    """The base of devices: registers behind a lock, and the device tree's node.

    Handlers run with ``lock`` held. Other threads take it before they access the state.
    """

    registers: ClassVar[tuple[Reg, ...]] = ()
    register_size: ClassVar[int] = 4  # bytes

    node_name: ClassVar[str]
    compatible: ClassVar[tuple[str, ...]]
    properties: ClassVar[Mapping[str, int | str | None]] = {}  # further ones of the node
    edge_triggered: ClassVar[bool] = False  # the interrupt is an edge, not a level
    state_fields: ClassVar[tuple[StateField, ...]] = ()  # saved beside the registers

    _banks: ClassVar[list[tuple[dict[int, Reader], dict[int, Writer]]]] = [({}, {})]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.registers += tuple(reg for reg in vars(cls).values() if isinstance(reg, Reg))
        cls._banks = [_tables(cls, bank) for bank in range(1 + max(r.bank for r in cls.registers))]

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values = {reg.name: reg.reset for reg in self.registers}
        self._register_mask = _MASK[self.register_size]
        self.select_bank(0)

    @property
    def values(self) -> dict[str, int]:
        """The value of every register, by name; a write-only register's last value too."""
        return {reg.name: getattr(self, reg.name) for reg in self.registers}

    @values.setter
    def values(self, values: Mapping[str, int]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def state(self) -> dict[str, Any]:
        """Return the device's state, for JSON; with the lock, while no vCPU runs."""
        return {"registers": self.values, **save_fields(self, self.state_fields)}

    def restore(self, state: object, where: str) -> None:
        """Restore a saved state, without an interrupt; ``where`` is its name in messages.

        Raises: StateError, for a state that is invalid or does not match this device.
        """
        most = self._register_mask
        registers = [StateField(reg.name, 0, most) for reg in self.registers]
        with self.lock:
            restore_fields(
                self, registers, section(state, "registers", where), f"{where}.registers"
            )
            restore_fields(self, self.state_fields, state, where)
            self.restored()

    def restored(self) -> None:
        """Update everything that depends on the restored registers; with the lock."""

    def select_bank(self, bank: int) -> None:
        """Select that bank; bank 0's registers fill its gaps."""
        self._readers, self._writers = self._banks[bank]

    def mmio_read(self, offset: int, length: int) -> int:
        """Return a guest's read of ``length`` bytes at ``offset`` from the device's base."""
        with self.lock:
            reader = self._readers.get(offset)
            if reader is not None:
                return reader(self) & _MASK[length]
            start = offset & -self.register_size
            reader = self._readers.get(start)
            return reader(self) >> 8 * (offset - start) & _MASK[length] if reader else 0

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        """Handle a guest's write of ``length`` bytes at ``offset`` from the device's base."""
        with self.lock:
            writer = self._writers.get(offset)
            if writer is not None:
                writer(self, value & _MASK[length] & self._register_mask)


def _tables(device: type[Device], bank: int) -> tuple[dict[int, Reader], dict[int, Writer]]:
    """Return the handlers by offset while that bank is selected.

    Raises: TypeError, if two registers claim the same access.
    """
    readers: dict[int, Reader] = {}
    writers: dict[int, Writer] = {}
    for level in {0, bank}:
        here = [reg for reg in device.registers if reg.bank == level]
        readable = {reg.offset: reg.reader or _plain(reg)[0] for reg in here if reg.readable}
        writable = {reg.offset: reg.writer or _plain(reg)[1] for reg in here if reg.writable}
        claims = sum(reg.readable + reg.writable for reg in here)
        if claims != len(readable) + len(writable):
            raise TypeError(f"{device.__name__}: two registers of bank {level} share an offset")
        readers |= readable
        writers |= writable
    return readers, writers


def _plain(reg: Reg) -> tuple[Reader, Writer]:
    """Return the handlers of a register without side effects."""
    name = reg.name

    def write(device: Device, value: int) -> None:
        setattr(device, name, value)

    return attrgetter(name), write
