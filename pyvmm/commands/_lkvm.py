"""Options of lkvm's that pyvmm knows and refuses, each with its reason.

An option that changes what the guest gets is never ignored in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pyvmm.errors import UsageError
from pyvmm.records import Record

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Refused(Record):
    """An option's names, whether it takes a value, and why pyvmm does not take it."""

    names: tuple[str, ...]
    takes_value: bool
    reason: str


NO_VIRTIO = "there is no such virtio device yet"
NO_PCI = "there is no PCI yet"
NO_FIRMWARE = "guests start at their entry point, without firmware"

REFUSED = (
    Refused(("--9p",), True, NO_VIRTIO),
    Refused(("--vsock",), True, NO_VIRTIO),
    Refused(("--force-pci",), False, NO_PCI),
    Refused(("-f", "--firmware"), True, NO_FIRMWARE),
    Refused(("-F", "--flash"), True, NO_FIRMWARE),
    Refused(("--firmware-address",), True, NO_FIRMWARE),
    Refused(("--debug-single-step",), False, "there is no single-stepping yet"),
    Refused(("--debug-ioport",), False, "arm64 has no I/O ports"),
    Refused(("--debug-iodelay",), True, "I/O cannot be delayed yet"),
)

# Nothing to do: pyvmm never has what they switch off.
ALREADY_SO = ("--no-dhcp",)


def refuse_lkvm_options(command: _Command) -> _Command:
    """Give a command every option of the tables, hidden."""
    for refused in REFUSED:
        command = click.option(
            *refused.names,
            is_flag=not refused.takes_value,
            hidden=True,
            expose_value=False,
            callback=_refuse(refused),
        )(command)
    for name in ALREADY_SO:
        command = click.option(name, is_flag=True, hidden=True, expose_value=False)(command)
    return command


def _refuse(refused: Refused) -> Callable[[click.Context, click.Parameter, object], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value and not ctx.resilient_parsing:
            raise UsageError(f"{refused.names[-1]}: {refused.reason}")

    return callback
