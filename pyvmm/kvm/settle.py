"""Exits settled in C, without Python: what no device claims, and much of what devices are asked.

Of devices, a 16550A's registers and those that say why there was an interrupt are known here,
because these are the accesses that count: see settle.c. What may be settled is published by
whoever emulates it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, cast

from pyvmm.kvm.native import native
from pyvmm.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    from pyvmm.kvm._kvm import Lib, SettlerPort, SettlerState

PATIENCE_OVER: Final = 0
NO_PATIENCE_NEEDED: Final = -1  # Python is not to hear of accesses that were settled


class Latch:
    """Bits that one side sets and the other clears, each at once; see struct pyvmm_latch."""

    def __init__(self, lib: Lib, settler: SettlerState, number: int) -> None:
        self._lib = lib
        self._settler = settler
        self._number = number

    def get(self) -> int:
        """The bits that are set."""
        return self._settler.latch[self._number].bits

    def set(self, bits: int) -> None:
        """Set bits more."""
        self._lib.pyvmm_latch_set(self._settler, self._number, bits)

    def clear(self, bits: int) -> None:
        """Clear bits."""
        self._lib.pyvmm_latch_clear(self._settler, self._number, bits & 0xFFFF_FFFF)


class Settler:
    """Settles exits of a VM's vCPUs; of them too, it must not be used after they are closed.

    ``claimed`` are the regions of devices, as first address and the one after the last; what is
    outside them all reads as zero and ignores writes, unless not ``unclaimed``. ``ports`` are the
    addresses of 16550As, at most 4 (0: none of that number); ``latches`` those of registers that
    are read, each with one behind it that clears bits.
    """

    def __init__(
        self,
        vcpus: Sequence[Vcpu],
        claimed: Iterable[tuple[int, int]],
        ports: Sequence[int],
        latches: Sequence[int] = (),
        *,
        unclaimed: bool = True,
    ) -> None:
        extension = native()
        self._ffi, self._lib = extension.ffi, extension.lib
        self._state = cast("SettlerState", self._ffi.new("struct pyvmm_settler *"))
        self._lib.pyvmm_settler_init(self._state)
        regions = list(claimed)
        if (
            len(regions) > self._lib.PYVMM_REGIONS
            or len(ports) > self._lib.PYVMM_PORTS
            or len(latches) > self._lib.PYVMM_LATCHES
        ):
            counts = f"{len(regions)} regions, {len(ports)} ports, {len(latches)} latches"
            raise ValueError(f"{counts}: too many")
        for number, (base, end) in enumerate(regions):
            self._state.region[number].base, self._state.region[number].end = base, end
        self._state.regions = len(regions)
        self._state.unclaimed = int(unclaimed)
        for number, base in enumerate(ports):
            self._state.port[number].base = base
            self._state.port[number].patience = NO_PATIENCE_NEEDED
        self._buffer_size = self._lib.PYVMM_SENT
        for number, address in enumerate(latches):
            self._state.latch[number].address = address
        self._state.latches = len(latches)
        for vcpu in vcpus:
            vcpu.settle_by(self._state)

    def port(self, number: int) -> SettlerPort:
        """What may be settled of that port's: see struct pyvmm_port.

        ``registers`` byte n is what register n reads as, if bit n of byte 0 says that reading it
        changes nothing (nor then does writing its own value to IER); ``sends`` that writing
        register 0 sends a byte and changes nothing else; ``patience`` after how many settled
        accesses Vcpu.attention is set.
        """
        return self._state.port[number]

    def latch(self, number: int) -> Latch:
        """The bits of that latch."""
        return Latch(self._lib, self._state, number)

    def has_sent(self, number: int) -> bool:
        """Whether a guest has sent bytes that nobody has taken: by that port, or by some other."""
        return bool(self._lib.pyvmm_has_sent(self._state, number))

    def take(self, number: int) -> bytes:
        """What that port has sent by coalesced writes and settled exits, oldest first.

        Once is enough, unless another port holds up the ring with more than it has room for.
        """
        buffer = bytearray(self._buffer_size)
        taken = self._lib.pyvmm_take(
            self._state, number, self._ffi.from_buffer(buffer), self._buffer_size
        )
        return bytes(buffer[:taken])

    def wait_sent(self, number: int, stop_fd: int, soon_ms: int, seldom_ms: int) -> bool:
        """Wait until a guest has sent something by that port.

        False is returned when ``stop_fd`` can be read. Nothing tells of a coalesced write: this
        looks, after ``soon_ms`` at first, then less and less often, at least every ``seldom_ms``.
        """
        return bool(self._lib.pyvmm_wait_sent(self._state, number, stop_fd, soon_ms, seldom_ms))
