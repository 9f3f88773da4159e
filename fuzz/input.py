"""The input of a fuzzing target, read as numbers and choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

INTERESTING = (
    0, 1, 2, 3, 4, 7, 8, 15, 16, 64, 127, 128, 255, 256, 4095, 4096, 1 << 15, (1 << 16) - 1,
    1 << 16, 1 << 20, 1 << 21, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 48,
    (1 << 52) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip


class Input:
    """A cursor over bytes; after their end it reads zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """The number of bytes that were not read."""
        return max(0, len(self._data) - self._at)

    def take(self, size: int) -> bytes:
        """Read bytes; fewer at the end."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.take(self.left)

    def u8(self) -> int:
        """Read a byte."""
        return self.number(1)

    def u16(self) -> int:
        """Read two bytes."""
        return self.number(2)

    def number(self, size: int) -> int:
        """Read a number of that many bytes."""
        return int.from_bytes(self.take(size), "little")

    def flag(self) -> bool:
        """Read a byte as yes or no."""
        return bool(self.u8() & 1)

    def below(self, limit: int) -> int:
        """Read a number from 0 to ``limit`` - 1."""
        return self.number(1 if limit <= 1 << 8 else 2 if limit <= 1 << 16 else 8) % limit

    def choice(self, values: Sequence[T]) -> T:
        """Choose one of the values."""
        return values[self.below(len(values))]

    def wide(self) -> int:
        """Read a number of 64 bits: a byte below 128 chooses an interesting one."""
        chosen = self.u8()
        return self.number(8) if chosen & 0x80 else INTERESTING[chosen % len(INTERESTING)]
