"""The choice between this machine's own KVM and an emulated arm64 host.

``is_local`` chooses. ``forward`` runs a command line in an emulated host, as if it ran here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyvmm.base.computer import INSIDE_VARIABLE as INSIDE_VARIABLE
from pyvmm.base.computer import describe_inside as describe_inside
from pyvmm.errors import HostError
from pyvmm.host.settings import HostSettings as HostSettings

if TYPE_CHECKING:
    from pyvmm.host.bridges import Listener
    from pyvmm.host.share import Needs

DEVICE: Final = Path("/dev/kvm")
ARM64: Final = "aarch64"


def machine() -> str:
    """Return this machine's architecture, as the kernel names it."""
    return os.uname().machine  # the module platform costs 8 million instructions at a start


def why_not_local() -> HostError | None:
    """Return why this machine's own KVM cannot run arm64 guests, or None where it can."""
    emulated = "leave out `host`=local: pyvmm then runs it in an emulated arm64 host"
    if machine() != ARM64:
        return HostError(
            f"this machine is {machine()}, and its KVM runs no arm64 guests",
            hint=emulated,
        )
    try:  # access(2) would ignore a container's rules and a missing driver
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return HostError(
            f"{DEVICE} does not exist: the kernel has no KVM, or did not start at EL2",
            hint=f"see `dmesg | grep -i kvm`; or {emulated}",
        )
    except OSError as error:
        from pyvmm.host import access

        return access.refusal(DEVICE, error)
    return None


def is_local(settings: HostSettings) -> bool:
    """Return whether a command with these settings runs on this machine's own KVM.

    On an arm64 machine with a /dev/kvm, only the settings choose an emulated host: a device that
    cannot be opened is an error.

    Raises:
        HostError: this machine's KVM was chosen and cannot be used.
    """
    if describe_inside() is not None:
        return True
    if settings.kind == "emulated" or (settings.kind == "auto" and settings.customised):
        return False
    reason = why_not_local()
    if reason is not None and (settings.kind == "local" or has_device()):
        raise reason
    return reason is None


def has_device() -> bool:
    """Return whether this is an arm64 machine with a /dev/kvm, usable or not."""
    return machine() == ARM64 and DEVICE.exists()


def say_why_emulated(settings: HostSettings, say: Callable[[str], None]) -> None:
    """Report why an arm64 machine uses an emulated host by default."""
    if settings.kind == "auto" and not settings.customised and machine() == ARM64:
        say(f"{why_not_local()}; using an emulated host")


def forward(
    settings: HostSettings,
    argv: list[str],
    needs: Needs | None = None,
    ttys: Iterable[int] = (),
    debuggers: Listener | None = None,
) -> int:
    """Run a command line in the emulated host of these settings and return its exit code.

    The command sees the files that it ``needs``, by default all. ``ttys`` are the numbers of its
    guest's terminals that appear as ptys of this machine. ``debuggers`` of its guest connect here.

    Raises:
        HostError: the host cannot be made or started, ended during the command, or cannot see
            the files or the current directory.
    """
    from pyvmm.host import running, share
    from pyvmm.host.bridges import run_with_ttys
    from pyvmm.host.connection import Unreachable
    from pyvmm.host.instance import Instance
    from pyvmm.host.progress import Progress

    needs = share.ALL if needs is None else needs
    share.refuse_hidden(needs.files)
    progress = Progress()
    say_why_emulated(settings, progress.say)
    instance = Instance(settings, progress)
    found = instance.ensure()
    try:
        return run_with_ttys(found, argv, ttys, needs, debuggers)
    except Unreachable:  # it was being stopped, or its idle time was over
        running.wait_for_end(found)
    found = instance.ensure()
    return run_with_ttys(found, argv, ttys, needs, debuggers)
