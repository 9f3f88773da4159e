"""Where a command runs: on this machine's own KVM, or in an emulated arm64 host.

``locate`` decides; ``forward`` runs a command line in an emulated host, as if it ran here.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyvmm.computer import INSIDE_VARIABLE, describe_inside
from pyvmm.errors import HostError
from pyvmm.host.settings import HostSettings

DEVICE: Final = Path("/dev/kvm")
ARM64: Final = "aarch64"

__all__ = (
    "INSIDE_VARIABLE",
    "HostSettings",
    "describe_inside",
    "forward",
    "is_local",
    "why_not_local",
)


def why_not_local() -> HostError | None:
    """Why this machine's own KVM cannot run arm64 guests, or None where it can."""
    emulated = "leave out --host local: pyvmm then runs it in an emulated arm64 host"
    if platform.machine() != ARM64:
        return HostError(
            f"this machine is {platform.machine()}, and its KVM runs no arm64 guests",
            hint=emulated,
        )
    if not DEVICE.exists():
        return HostError(
            f"{DEVICE} does not exist: the kernel has no KVM, or did not start at EL2",
            hint=f"see `dmesg | grep -i kvm`; or {emulated}",
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return HostError(
            f"{DEVICE} is not readable and writable for you",
            hint=f"sudo usermod -aG kvm {os.environ.get('USER', '$USER')}, then log in again",
        )
    return None


def is_local(settings: HostSettings) -> bool:
    """Whether a command with these settings runs on this machine's own KVM.

    Raises:
        HostError: --host local was asked for and cannot be.
    """
    if describe_inside() is not None:
        return True
    reason = why_not_local()
    if settings.kind == "local":
        if reason is not None:
            raise reason
        return True
    return settings.kind == "auto" and reason is None and not settings.customised


def forward(
    settings: HostSettings, argv: list[str], files: Iterable[Path] = (), ttys: Iterable[int] = ()
) -> int:
    """Run a command line in the emulated host of these settings and return its exit code.

    ``files`` are those the command is to read or write, ``ttys`` the terminals of its guest that
    are to be on ptys of this machine.

    Raises:
        HostError: the host cannot be made or started, ended in the middle of the command, or
            does not see the files or the current directory.
    """
    from pyvmm.host import running, share
    from pyvmm.host.bridges import run_with_ttys
    from pyvmm.host.connection import Unreachable
    from pyvmm.host.instance import Instance
    from pyvmm.host.progress import Progress

    share.refuse_hidden(files)
    instance = Instance(settings, Progress())
    found = instance.ensure()
    try:
        return run_with_ttys(found, argv, ttys)
    except Unreachable:  # it was just being stopped, or had been idle long enough
        running.wait_for_end(found)
    found = instance.ensure()
    return run_with_ttys(found, argv, ttys)
