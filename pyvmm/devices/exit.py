"""The exit register: a guest ends its VM with an exit code.

This device is pyvmm's own, in a hole of lkvm's map (pyvmm.layout.EXIT). A guest with a device tree
finds it as ``compatible = "pyvmm,exit"``. A guest without one can read the register: it returns
``pyvm`` in ASCII, and 0 under lkvm or a pyvmm without the device.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.devices.device import Device, Reg

MAGIC = int.from_bytes(b"pyvm", "little")


class ExitRegister(Device):
    """One register: a write of N, of any width, ends the VM with exit code N & 0xff.

    ``on_exit`` gets the code, on the thread of the vCPU that wrote. An exit code has eight bits,
    as a process's has.
    """

    node_name = "exit"
    compatible = ("pyvmm,exit",)

    EXIT = Reg(0x0, "write N: end the VM with code N & 0xff; reads as 'pyvm'", reset=MAGIC)

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        super().__init__()
        self.on_exit = on_exit

    @EXIT.write
    def _(self, value: int) -> None:
        # The bytes of a big-endian guest's 32-bit store are in the other order: N is not lost.
        self.on_exit(value & 0xFF or value >> 24 & 0xFF)
