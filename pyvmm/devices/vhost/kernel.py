"""The kernel's vhost: its ioctls, in the order that every device shares.

Source: linux/vhost.h, linux/vhost_types.h; Linux, drivers/vhost/vhost.c.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyvmm.devices.vhost.backend import Ring
from pyvmm.errors import HostError
from pyvmm.memory.map import MemoryRegion

TYPE: Final = 0xAF
NONE, WRITE, READ = 0, 1, 2  # the directions of asm-generic/ioctl.h


def request(direction: int, number: int, size: int) -> int:
    """Return an ioctl's request, as the macros of asm-generic/ioctl.h do."""
    return direction << 30 | size << 16 | TYPE << 8 | number


U64: Final = struct.Struct("=Q")
INT: Final = struct.Struct("=i")
MEMORY: Final = struct.Struct("=II")  # struct vhost_memory: nregions, padding
REGION: Final = struct.Struct("=QQQQ")  # struct vhost_memory_region: gpa, size, address, flags
STATE: Final = struct.Struct("=II")  # struct vhost_vring_state: index, num
FILE: Final = struct.Struct("=Ii")  # struct vhost_vring_file: index, fd
ADDRESSES: Final = struct.Struct("=IIQQQQ")  # struct vhost_vring_addr

GET_FEATURES: Final = request(READ, 0x00, U64.size)
SET_FEATURES: Final = request(WRITE, 0x00, U64.size)
SET_OWNER: Final = request(NONE, 0x01, 0)
SET_MEM_TABLE: Final = request(WRITE, 0x03, MEMORY.size)
SET_VRING_NUM: Final = request(WRITE, 0x10, STATE.size)
SET_VRING_ADDR: Final = request(WRITE, 0x11, ADDRESSES.size)
SET_VRING_BASE: Final = request(WRITE, 0x12, STATE.size)
GET_VRING_BASE: Final = request(READ | WRITE, 0x12, STATE.size)
SET_VRING_KICK: Final = request(WRITE, 0x20, FILE.size)
SET_VRING_CALL: Final = request(WRITE, 0x21, FILE.size)
SET_VRING_ERR: Final = request(WRITE, 0x22, FILE.size)


class VhostKernel:
    """A vhost device of the kernel, opened at ``path``; it belongs to this process.

    A device sets `_run`, which starts and stops the work on all queues.

    Raises: HostError, if the file cannot be opened, or the kernel refuses.
    """

    def __init__(self, path: Path, name: str, module: str) -> None:
        self.name = name
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(
                f"cannot open {path}: {error.strerror}", hint=_remedy(error, path, module)
            ) from error
        try:
            self.call("VHOST_SET_OWNER", SET_OWNER)
            (self.features,) = U64.unpack(self.call("VHOST_GET_FEATURES", GET_FEATURES, bytes(8)))
        except HostError:
            self.close()
            raise

    def call(self, what: str, request: int, argument: bytes = b"") -> bytes:
        """Make an ioctl; return its argument as the kernel has changed it.

        Raises: HostError, with the kernel's reason.
        """
        try:
            return fcntl.ioctl(self._fd, request, argument) if argument else self._bare(request)
        except OSError as error:
            raise HostError(f"{self.name}: {what}: {error.strerror}") from error

    def _bare(self, request: int) -> bytes:
        fcntl.ioctl(self._fd, request)
        return b""

    def start(self, features: int, memory: Sequence[MemoryRegion], rings: dict[int, Ring]) -> None:
        """Give the kernel the memory and the queues, and start its work."""
        self.call("VHOST_SET_FEATURES", SET_FEATURES, U64.pack(features))
        table = [REGION.pack(piece.base, piece.size, piece.host_address, 0) for piece in memory]
        packed = MEMORY.pack(len(table), 0) + b"".join(table)
        self.call("VHOST_SET_MEM_TABLE", SET_MEM_TABLE, packed)
        for index, ring in rings.items():
            addresses = ADDRESSES.pack(index, 0, ring.desc, ring.used, ring.avail, 0)
            self.call("VHOST_SET_VRING_NUM", SET_VRING_NUM, STATE.pack(index, ring.size))
            self.call("VHOST_SET_VRING_BASE", SET_VRING_BASE, STATE.pack(index, ring.next_avail))
            self.call("VHOST_SET_VRING_ADDR", SET_VRING_ADDR, addresses)
            self.call("VHOST_SET_VRING_ERR", SET_VRING_ERR, FILE.pack(index, ring.error_fd))
            self.call("VHOST_SET_VRING_CALL", SET_VRING_CALL, FILE.pack(index, ring.call_fd))
            self.call("VHOST_SET_VRING_KICK", SET_VRING_KICK, FILE.pack(index, ring.kick_fd))
        self._run(True)

    def stop(self, queues: Sequence[int]) -> dict[int, int]:
        """Stop the kernel's work; return the next entry of each available ring."""
        self._run(False)
        bases = {}
        for index in queues:
            state = self.call("VHOST_GET_VRING_BASE", GET_VRING_BASE, STATE.pack(index, 0))
            bases[index] = STATE.unpack(state)[1]
        return bases

    def close(self) -> None:
        """Close the device: the kernel ends its work."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _run(self, on: bool) -> None:
        """Start or stop the work on all queues."""
        raise NotImplementedError


def _remedy(error: OSError, path: Path, module: str) -> str:
    if isinstance(error, PermissionError):
        return f"give your user access: sudo setfacl -m u:$USER:rw {path}"
    if isinstance(error, FileNotFoundError):
        return f"load the module: sudo modprobe {module}"
    return f"see dmesg for what the module {module} says"
