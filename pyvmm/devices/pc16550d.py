"""The bits of a 16550A's registers.

Source: Texas Instruments PC16550D data sheet (SNLS378C), section 8.
"""

from __future__ import annotations

FIFO_DEPTH = 16
CLOCK_HZ = 1_843_200  # of the baud rate generator: divisor 1 is 115,200 baud

# Interrupt enable (IER)
IER_RDI = 0x01  # received data
IER_THRI = 0x02  # transmitter holding register empty
IER_RLSI = 0x04  # receiver line status
IER_MSI = 0x08  # modem status
IER_BITS = 0x0F  # those that can be set

# Interrupt identification (IIR)
IIR_NO_INT = 0x01
IIR_MSI = 0x00
IIR_THRI = 0x02
IIR_RDI = 0x04
IIR_RLSI = 0x06
IIR_RX_TIMEOUT = 0x0C  # data below the trigger level has waited for four character times
IIR_FIFO_ENABLED = 0xC0

# FIFO control (FCR)
FCR_ENABLE_FIFO = 0x01
FCR_CLEAR_RCVR = 0x02
FCR_TRIGGER = (1, 4, 8, 14)  # characters, by FCR bits 7:6

# Line control (LCR)
LCR_SBC = 0x40  # send a break
LCR_DLAB = 0x80  # offsets 0 and 1 are the divisor

# Modem control (MCR), and the inputs (MSR) that loop-back connects its outputs to
MCR_LOOP = 0x10
LOOPED = (
    (0x01, 0x20),
    (0x02, 0x10),
    (0x04, 0x40),
    (0x08, 0x80),
)  # DTR-DSR RTS-CTS OUT1-RI OUT2-DCD

# Line status (LSR)
LSR_DR = 0x01  # data ready
LSR_OE = 0x02  # overrun
LSR_PE = 0x04
LSR_FE = 0x08
LSR_BI = 0x10  # break
LSR_THRE = 0x20
LSR_TEMT = 0x40
LSR_FIFO_ERROR = 0x80
LSR_IDLE = LSR_THRE | LSR_TEMT
LSR_OF_CHARACTER = LSR_PE | LSR_FE | LSR_BI
CHARACTER = LSR_OF_CHARACTER << 8 | 0xFF  # in the FIFO: LSR bits, then the byte

# Modem status (MSR): 0xF0 are the inputs, 0x0F the changes of each
MSR_RI = 0x40
MSR_CONNECTED = 0xB0  # DCD, DSR and CTS: always connected
MSR_DELTA = 0x0F
