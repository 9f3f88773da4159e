"""The C code that completes MMIO exits, built for this machine: a UART without KVM and arm64."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

from pyvmm.kvm._build import HERE
from tests.devices.builtc import load

SOURCE: Final = Path(__file__).with_name("plainmmio.c")
DECLARATIONS: Final = """
int plain_level(uint32_t irq);
void plain_set_level(uint32_t irq, int raised);
void *plain_make(uint64_t base);
void plain_free(void *fast);
void plain_set_line(void *fast, uint32_t irq, int32_t exits_first);
void plain_set_registers(void *fast, uint64_t registers);
void plain_set_complete_thr(void *fast, uint32_t complete);
void plain_set_exits_left(void *fast, int32_t exits);
int32_t plain_exits_left(void *fast);
void plain_lend(void *fast, int thr_emptied, int raised);
int plain_retake(void *fast);
int plain_has_tx(void *fast);
size_t plain_take_tx(void *fast, uint8_t *bytes, size_t size);
int plain_wait_tx(void *fast, int stop, int min_ms, int max_ms);
int plain_access(void *fast, uint64_t address, uint32_t length, int is_write, uint64_t *value);
int plain_coalesce(void *fast, uint64_t address, uint8_t value);
"""


@functools.cache
def plain(*options: str) -> tuple[Any, Any]:
    """Build the code, and load it; return cffi's FFI and the library."""
    return load(SOURCE, DECLARATIONS, f"-I{HERE}", *options)


class PlainUart:
    """What C knows of one UART: struct pyvmm_uart."""

    def __init__(self, lib: Any, fast: Any) -> None:
        self._lib, self._fast = lib, fast

    @property
    def exits_left(self) -> int:
        return int(self._lib.plain_exits_left(self._fast))

    @exits_left.setter
    def exits_left(self, exits: int) -> None:
        self._lib.plain_set_exits_left(self._fast, exits)

    def _set_registers(self, registers: int) -> None:
        self._lib.plain_set_registers(self._fast, registers)

    def _set_complete_thr(self, complete: bool) -> None:
        self._lib.plain_set_complete_thr(self._fast, complete)

    registers = property(fset=_set_registers)
    complete_thr = property(fset=_set_complete_thr)


class PlainFastMmio:
    """The part of FastMmio that a FastUart uses, and the guest's side."""

    def __init__(self, base: int, *options: str) -> None:
        self.ffi, self.lib = plain(*options)
        self.fast = self.lib.plain_make(base)
        self._base = base

    def close(self) -> None:
        self.lib.plain_free(self.fast)

    def uart(self, _: int) -> PlainUart:
        return PlainUart(self.lib, self.fast)

    def set_line(self, _: int, __: int, irq: int, exits_first: int) -> None:
        self.lib.plain_set_line(self.fast, irq, exits_first)

    def lend(self, _: int, *, thr_emptied: bool, raised: bool) -> None:
        self.lib.plain_lend(self.fast, thr_emptied, raised)

    def retake(self, _: int) -> tuple[int, bool, bool] | None:
        state = self.lib.plain_retake(self.fast)
        return None if state < 0 else (state & 0xFF, bool(state >> 8 & 1), bool(state >> 9 & 1))

    def has_tx(self, _: int) -> bool:
        return bool(self.lib.plain_has_tx(self.fast))

    def take_tx(self, _: int) -> bytes:
        buffer = bytearray(8192)
        taken = self.lib.plain_take_tx(self.fast, self.ffi.from_buffer(buffer), len(buffer))
        return bytes(buffer[:taken])

    def wait_tx(self, _: int, stop_fd: int, min_ms: int, max_ms: int) -> bool:
        return bool(self.lib.plain_wait_tx(self.fast, stop_fd, min_ms, max_ms))

    def read(self, offset: int, length: int) -> int | None:
        """Return what C gives a guest's read; None: it leaves it to Python."""
        value = self.ffi.new("uint64_t *")
        if not self.lib.plain_access(self.fast, self._base + offset, length, 0, value):
            return None
        return int(value[0]) & (1 << 8 * length) - 1

    def write(self, offset: int, length: int, value: int) -> bool:
        """Return whether C completes a guest's write."""
        where = self._base + offset
        word = self.ffi.new("uint64_t *", value)
        return bool(self.lib.plain_access(self.fast, where, length, 1, word))

    def coalesce(self, value: int) -> bool:
        """Write to THR as KVM's ring takes it; return False if the ring is full."""
        return bool(self.lib.plain_coalesce(self.fast, self._base, value))
