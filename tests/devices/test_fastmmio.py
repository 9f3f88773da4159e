"""The register offsets in C against the devices' tables."""

from __future__ import annotations

import re

from pyvmm.devices import pc16550d, uartfastpath
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.virtio.mmio import VirtioMmio
from tests.test_imports import PACKAGE


def test_register_offsets_in_c_match_the_devices() -> None:
    source = (PACKAGE / "kvm/fastmmio.c").read_text()
    found = re.findall(r"^#define PYVMM_((?:UART|VIRTIO|RTC)_\w+) (\w+)", source, re.MULTILINE)

    assert {name: int(value, 0) for name, value in found} == {
        "UART_SIZE": uartfastpath.REGISTERS,
        "UART_THR": Uart8250.THR.offset,
        "UART_IER": Uart8250.IER.offset,
        "UART_IER_BITS": pc16550d.IER_BITS,
        "UART_IER_THRI": pc16550d.IER_THRI,
        "UART_IIR": Uart8250.IIR.offset,
        "UART_IIR_NO_INT": pc16550d.IIR_NO_INT,
        "UART_IIR_THRI": pc16550d.IIR_THRI,
        "UART_IIR_FIFO_ENABLED": pc16550d.IIR_FIFO_ENABLED,
        "RTC_SIZE": Pl031.ICR.offset + Pl031.register_size,
        "RTC_DR": Pl031.DR.offset,
        "RTC_IMSC": Pl031.IMSC.offset,
        "VIRTIO_NOTIFY_TO_STATUS": VirtioMmio.InterruptStatus.offset
        - VirtioMmio.QueueNotify.offset,
        "VIRTIO_STATUS_TO_ACK": VirtioMmio.InterruptACK.offset - VirtioMmio.InterruptStatus.offset,
    }
