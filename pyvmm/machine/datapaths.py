"""The devices that have a data path in C, and what each needs of the machine.

To add one: its code in pyvmm/kvm/, its class beside DiskPath or ConsolePath, and a row in PATHS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.kvm.fastmmio import InterruptBits
from pyvmm.machine.devices import IrqFd
from pyvmm.memory.map import regions

if TYPE_CHECKING:  # imported lazily: a machine has few of these devices
    from contextlib import AbstractContextManager

    from pyvmm.devices.virtio.blk import VirtioBlk
    from pyvmm.devices.virtio.console import VirtioConsole
    from pyvmm.devices.virtio.rng import VirtioRng
    from pyvmm.kvm.datapath.disk import DiskPath
    from pyvmm.kvm.datapath.exits import ConsolePath, ExitPath, RngPath
    from pyvmm.kvm.native import Native
    from pyvmm.terminal.direct import Direct


def disk_path(
    device: VirtioBlk, irq_fd: int, isr: int, extension: Native | None = None
) -> DiskPath:
    """Make the data path of a disk; see DiskPath.

    Python handles the writes of a driver without flushes: each must be durable when it ends.
    """
    from pyvmm.devices.virtio.blk import F_FLUSH
    from pyvmm.kvm.datapath.disk import DiskPath

    (queue,) = device.queues
    return DiskPath(
        device.disk,
        regions(queue.memory),
        kick_fd=device.kick_fd,
        irq_fd=irq_fd,
        isr=isr,
        threads=device.threads,
        may_write=lambda: not device.disk.read_only and device.has(F_FLUSH),
        extension=extension,
    )


def console_path(
    device: VirtioConsole, direct: Direct, irq_fd: int, isr: int, extension: Native | None = None
) -> ConsolePath:
    """Make the data path of a console; see ConsolePath."""
    from pyvmm.kvm.datapath.exits import ConsolePath

    return ConsolePath(
        regions(device.transmitq.memory),
        output_fd=direct.fd,
        busy=direct.busy,
        irq_fd=irq_fd,
        isr=isr,
        extension=extension,
    )


def rng_path(device: VirtioRng, irq_fd: int, isr: int, extension: Native | None = None) -> RngPath:
    """Make the data path of an entropy device; see RngPath."""
    from pyvmm.devices.virtio.rng import MOST
    from pyvmm.kvm.datapath.exits import RngPath

    (queue,) = device.queues
    return RngPath(regions(queue.memory), most=MOST, irq_fd=irq_fd, isr=isr, extension=extension)


@contextmanager
def _disk(device: Any, irq_fd: int, bits: InterruptBits, direct: Direct | None) -> Iterator[None]:
    """Serve a disk's reads, writes and flushes in C."""
    with disk_path(device, irq_fd, bits.address) as path:
        device.use_data_path(path)
        try:
            yield
        finally:
            device.use_data_path(None)


@contextmanager
def _console(
    device: Any, irq_fd: int, bits: InterruptBits, direct: Direct | None
) -> Iterator[None]:
    """Serve a console's output and input in C, if its output has a descriptor for C."""
    if direct is None:
        yield
        return
    path = console_path(device, direct, irq_fd, bits.address)
    device.use_input_path(path)
    try:
        with _doorbell(path, bits):
            yield
    finally:
        device.use_input_path(None)


@contextmanager
def _rng(device: Any, irq_fd: int, bits: InterruptBits, direct: Direct | None) -> Iterator[None]:
    """Serve an entropy device's requests in C."""
    path = rng_path(device, irq_fd, bits.address)
    device.use_data_path(path)
    try:
        with _doorbell(path, bits):
            yield
    finally:
        device.use_data_path(None)


@contextmanager
def _doorbell(path: ExitPath, bits: InterruptBits) -> Iterator[None]:
    """Let the vCPUs serve the doorbell in C."""
    bits.serve_doorbell(path.doorbell, path.serve, path.state)
    try:
        yield
    finally:
        bits.leave_doorbell()


Path = Callable[[Any, int, InterruptBits, "Direct | None"], "AbstractContextManager[None]"]
PATHS: Final[dict[str, Path]] = {
    "virtio-blk": _disk,
    "virtio-console": _console,
    "virtio-rng": _rng,
}


def data_path(
    transport: VirtioMmio, bits: InterruptBits, direct: Direct | None
) -> AbstractContextManager[None]:
    """Let C serve a device while the context is open, if the device has a data path."""
    path = PATHS.get(transport.device.name)
    if path is None:
        return nullcontext()
    assert isinstance(transport.irq, IrqFd)
    return path(transport.device, transport.irq.fd, bits, direct)
