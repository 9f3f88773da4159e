"""The exit register: how a guest ends its VM with an exit code of its own.

pyvmm's own device, in a hole of lkvm's map (pyvmm.layout.EXIT). A guest that has a device tree
finds it as ``compatible = "pyvmm,exit"``; one without can read the register, which gives ``pyvm``
in ASCII, where lkvm and a pyvmm without it give 0.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.devices.device import Device, Reg

MAGIC = int.from_bytes(b"pyvm", "little")


class ExitRegister(Device):
    """One register: a write of N, of any width, ends the VM with exit code N & 0xff.

    ``on_exit`` gets the code on the thread of the vCPU that wrote. The bits above the low eight
    are ignored, as they are in the status of a process.
    """

    node_name = "exit"
    compatible = ("pyvmm,exit",)

    EXIT = Reg(0x0, "write N: end the VM with code N & 0xff; reads as 'pyvm'", reset=MAGIC)

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        super().__init__()
        self.on_exit = on_exit

    @EXIT.write
    def _(self, value: int) -> None:
        self.on_exit(value & 0xFF)
