"""What a UART's fast path does for `Uart8250`; machine/fastpath.py has the one that C serves."""

from __future__ import annotations

from typing import Protocol

REGISTERS = 8  # bytes
ALL_READABLE = 0xFF  # in `FastPath.publish`: no register's read has a side effect


class FastPath(Protocol):
    """Code that completes accesses without `Uart8250`, from the state that it publishes.

    The port calls it with its lock held. machine/fastpath.py has a picture of the parts.
    """

    def publish(self, registers: int, *, complete_thr: bool, coalesce_thr: bool) -> bool:
        """Take over the port's state, before its interrupt line changes.

        Bit n of byte 0 of ``registers`` says that a read of register n has no side effect. Byte n
        is then the value that it returns; register 0 returns 0. ``complete_thr``: until the next
        call, a write of THR only transmits its byte. ``coalesce_thr``: this stays true after any
        read by the guest.

        Returns: whether this call ends the permission of coalesced writes.
        """

    def sent(self) -> bytes:
        """Take the bytes that the guest has written to THR by the fast path."""

    def lend(self, *, thr_emptied: bool, raised: bool) -> None:
        """Own IER, the condition of THRI and the interrupt line until `retake`, or decline.

        No other interrupt can become pending, and a write of THR transmits its byte.
        """

    def retake(self) -> tuple[int, bool, bool] | None:
        """End the loan; return IER, the condition of THRI and the line, or None without a loan."""
