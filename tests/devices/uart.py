"""A UART for tests, and its register offsets."""

from __future__ import annotations

from pyvmm.devices.uart8250 import HOLD_READS, POLL_READS, Uart8250

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = EFR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

NO_INT, THRI, RDI, RLSI, TIMEOUT, MSI = 0x01, 0x02, 0x04, 0x06, 0x0C, 0x00


class Port:
    """A UART that records its output, its interrupt line and its calls of on_room."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.levels: list[bool] = []
        self.rooms = 0
        self.uart = Uart8250(self.levels.append, self.sent.extend)
        self.uart.on_room = self.room

    def room(self) -> None:
        self.rooms += 1

    @property
    def raised(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def read(self, offset: int) -> int:
        return self.uart.mmio_read(offset, 1)

    def write(self, offset: int, value: int) -> None:
        self.uart.mmio_write(offset, 1, value)

    def poll(self) -> int:
        """Read LSR until it shows input, as a polling guest does; give up after enough reads."""
        for _ in range(2 + HOLD_READS // POLL_READS):
            if (status := self.read(LSR)) & 0x01:
                break
        return status

    def read_all(self) -> bytes:
        """Read the input as a polling guest does."""
        data = bytearray()
        while self.poll() & 0x01:
            data.append(self.read(RBR))
        return bytes(data)

    def interrupt(self) -> bytes:
        """Read the input as a driver does at interrupts, until none is raised."""
        data = bytearray()
        while self.raised and not self.read(IIR) & NO_INT:
            while self.read(LSR) & 0x01:
                data.append(self.read(RBR))
        return bytes(data)
