"""Options of lkvm that pyvmm refuses, each with a reason.

pyvmm never ignores an option that changes the guest.
"""

from __future__ import annotations

import os

import click

from pyvmm.base.deferral import short_options_unguessed
from pyvmm.commands._options import added
from pyvmm.errors import UsageError

NO_PCI = "there is no PCI yet"
NO_FIRMWARE = "guests start at their entry point, without firmware"

REFUSED = {
    "--9p": "pyvmm shares directories by virtio-fs: --share DIR,TAG",
    "--force-pci": NO_PCI,
    "--firmware": NO_FIRMWARE,
    "--flash": NO_FIRMWARE,
    "--firmware-address": NO_FIRMWARE,
    "--debug-single-step": "a debugger steps: `pyvmm gdb NAME`",
    "--debug-ioport": "arm64 has no I/O ports",
    "--debug-iodelay": "I/O cannot be delayed yet",
}
SHORT = {"-f": "--firmware", "-F": "--flash"}

# Hidden options that do nothing: pyvmm never has what they disable.
ALREADY_SO = ("--no-dhcp",)
lkvm_options = added(
    *(click.option(name, is_flag=True, hidden=True, expose_value=False) for name in ALREADY_SO)
)


class LkvmCommand(click.Command):
    """A command that refuses these options with their reasons.

    click does not know them: each option that it knows makes every start slower.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line and the environment as click does.

        Raises: UsageError, for one of these options.
        """
        try:
            with short_options_unguessed():
                rest = super().parse_args(ctx, _with_optional_values(args))
        except click.NoSuchOption as error:
            name = SHORT.get(error.option_name, error.option_name)
            if name in REFUSED:
                raise UsageError(f"{name}: {REFUSED[name]}") from None
            raise
        for name, reason in REFUSED.items():
            words = name.lstrip("-").replace("-", "_").upper()
            variable = f"{ctx.auto_envvar_prefix}_{words}"  # as click names it
            if os.environ.get(variable):
                raise UsageError(f"{variable}: {reason}", hint="unset it")
        return rest


def _with_optional_values(args: list[str]) -> list[str]:
    """Return arguments in which --gdb takes the next word only if that is a port.

    click would take any word, as in `--gdb IMAGE`.
    """
    return [
        f"{word}=" if word == "--gdb" and not following.isdigit() else word
        for word, following in zip(args, [*args, ""][1:], strict=True)
    ]
