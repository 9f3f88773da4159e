"""What a machine is to be: plain data, checked for what makes no sense on any host.

What only a host can refuse (its vCPU limit, its address width, its vector lengths) is checked
by the machine, when it meets the host.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pyvmm.errors import UsageError
from pyvmm.layout import MIB
from pyvmm.units import show_size

DEFAULT_BOOTARGS = " console=ttyS0 root=/dev/vda rw "  # what lkvm starts a command line with
PAGE = 4096

Console = Literal["serial", "virtio"]
Transport = Literal["mmio", "mmio-legacy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SveRequest:
    """What is asked of SVE; nothing at all means the host's full set, where it has SVE.

    Lengths are in bits. ``vls`` is exactly that set, ``max_vl`` every host length up to it,
    ``required`` makes a host without SVE an error, ``off`` hides SVE from the guest.

    Raises: UsageError, when two requests contradict each other.
    """

    required: bool = False
    off: bool = False
    vls: frozenset[int] | None = None
    max_vl: int | None = None

    def __post_init__(self) -> None:
        if self.off and self.wanted:
            raise UsageError(f"--no-sve and {self.wanted} contradict each other; give one")
        if self.vls is not None and self.max_vl is not None:
            raise UsageError("--sve-vls and --sve-max-vl both choose the set; give one")
        if self.vls is not None and not self.vls:
            raise UsageError("--sve-vls: the set is empty", hint="--no-sve runs without SVE")

    @property
    def wanted(self) -> str:
        """The option that asks for SVE, as the user would write it; empty if none does."""
        if self.vls is not None:
            return "--sve-vls=" + ",".join(map(str, sorted(self.vls)))
        if self.max_vl is not None:
            return f"--sve-max-vl={self.max_vl}"
        return "--sve" if self.required else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One machine: what it boots, how large it is, and how long it may take.

    ``vcpus`` and ``memory`` (bytes) left as None take lkvm's defaults, see default_vcpus()
    and default_memory().

    Raises: UsageError, for what makes no sense on any machine.
    """

    image: Path
    vcpus: int | None = None
    memory: int | None = None
    sve: SveRequest = field(default_factory=SveRequest)
    params: str = ""
    nodefaults: bool = False
    initrd: Path | None = None
    name: str = field(default_factory=lambda: f"guest-{os.getpid()}")
    timeout_s: float | None = None
    console: Console = "serial"
    virtio_transport: Transport = "mmio"

    def __post_init__(self) -> None:
        if self.vcpus is not None and self.vcpus < 1:
            raise UsageError(f"-c {self.vcpus}: a machine needs at least 1 vCPU")
        if self.memory is not None and self.memory < 1:
            raise UsageError(f"-m {self.memory}: a machine needs memory")
        if self.memory is not None and self.memory % PAGE:
            raise UsageError(f"-m: {show_size(self.memory)} is not a whole number of 4 KiB pages")
        if self.timeout_s is not None and not 0 < self.timeout_s < float("inf"):
            raise UsageError(f"--timeout {self.timeout_s:g}: needs a time above 0 s")
        if "\0" in self.params:
            raise UsageError("--params: a kernel command line cannot hold a NUL")

    @property
    def bootargs(self) -> str:
        """The kernel command line: lkvm's defaults, then ``params``."""
        return self.params if self.nodefaults else DEFAULT_BOOTARGS + self.params


def default_vcpus(limit: int) -> int:
    """As many vCPUs as the host has CPUs online, at most ``limit``."""
    return min(os.sysconf("SC_NPROCESSORS_ONLN"), limit)


def default_memory(vcpus: int) -> int:
    """64 MiB for each vCPU and for three more, at most 80 % of the host's memory."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(64 * MIB * (vcpus + 3), host * 4 // 5 // MIB * MIB)
