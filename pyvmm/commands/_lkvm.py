"""Options of lkvm that pyvmm refuses, each with a reason.

pyvmm never ignores an option that changes the guest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pyvmm.base.records import Record
from pyvmm.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Refused(Record):
    """An option's names, and why pyvmm refuses it."""

    names: tuple[str, ...]
    reason: str


NO_VIRTIO = "there is no such virtio device yet"
NO_PCI = "there is no PCI yet"
NO_FIRMWARE = "guests start at their entry point, without firmware"

REFUSED = (
    Refused(("--9p",), NO_VIRTIO),
    Refused(("--vsock",), NO_VIRTIO),
    Refused(("--force-pci",), NO_PCI),
    Refused(("-f", "--firmware"), NO_FIRMWARE),
    Refused(("-F", "--flash"), NO_FIRMWARE),
    Refused(("--firmware-address",), NO_FIRMWARE),
    Refused(("--debug-single-step",), "there is no single-stepping yet"),
    Refused(("--debug-ioport",), "arm64 has no I/O ports"),
    Refused(("--debug-iodelay",), "I/O cannot be delayed yet"),
)

# These do nothing: pyvmm never has what they disable.
ALREADY_SO = ("--no-dhcp",)


class LkvmCommand(click.Command):
    """A command that refuses these options with their reasons.

    click does not know them: each option that it knows makes every start slower.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line and the environment as click does.

        Raises: UsageError, for one of these options.
        """
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            for refused in REFUSED:
                if error.option_name in refused.names:
                    raise UsageError(f"{refused.names[-1]}: {refused.reason}") from None
            raise
        for refused in REFUSED:
            variable = _variable(ctx, refused.names[-1])
            if os.environ.get(variable):
                raise UsageError(f"{variable}: {refused.reason}", hint="unset it")
        return rest


def _variable(ctx: click.Context, option: str) -> str:
    """Return an option's environment variable, as click names it."""
    name = option.lstrip("-").replace("-", "_").upper()
    return f"{ctx.auto_envvar_prefix}_{name}"


def lkvm_options(command: _Command) -> _Command:
    """Add the hidden options that do nothing to a command."""
    for name in ALREADY_SO:
        command = click.option(name, is_flag=True, hidden=True, expose_value=False)(command)
    return command
