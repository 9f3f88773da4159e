"""The options for where a command runs; commands that need KVM have them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from pyvmm import host
from pyvmm.cli import Invocation, say
from pyvmm.commands._options import added
from pyvmm.errors import HostError
from pyvmm.host.settings import (
    DEFAULT_CPU,
    DEFAULT_KERNEL,
    DEFAULT_QEMU,
    KERNEL_SUITES,
    KINDS,
    QEMU_SUITES,
    HostSettings,
)
from pyvmm.host.share import NOTHING, Needs, hidden

_Result = TypeVar("_Result")

CHOICE = "VERSION|SUITE|PATH"


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of models that begin so, for the shell."""
    from pyvmm.host import models

    return [name for name in models.MODELS if name.startswith(incomplete)]


_OPTIONS = (
    click.option(
        "--host", type=click.Choice(KINDS), default="auto", envvar="PYVMM_HOST",
        help="Where to run. local: this machine's KVM. emulated: an emulated arm64 host. auto: "
        "local on an arm64 machine with /dev/kvm, else emulated.",
    ),
    click.option(
        "--host-model", metavar="NAME", envvar="PYVMM_HOST_MODEL", shell_complete=complete_model,
        help="A ready-made emulated host: gicv2, mte, nested, a64fx, ... `pyvmm host list` shows "
        "them. The options below override what it chooses.",
    ),
    click.option(
        "--host-kernel", metavar=CHOICE, envvar="PYVMM_HOST_KERNEL",
        help=f"The emulated host's kernel ({DEFAULT_KERNEL} by default): "
        f"{', '.join(KERNEL_SUITES)} or another of Debian's "
        "versions, a Debian suite (sid), or a path. `pyvmm host list` shows the versions.",
    ),
    click.option(
        "--host-qemu", metavar=CHOICE, envvar="PYVMM_HOST_QEMU",
        help=f"The emulated host's QEMU ({DEFAULT_QEMU} by default): "
        f"{', '.join(QEMU_SUITES)} or another version, a suite, or a path.",
    ),
    click.option(
        "--host-machine", metavar="OPTIONS", envvar="PYVMM_HOST_MACHINE",
        help="Properties of the emulated host's machine, as for QEMU's -M virt,OPTIONS: "
        "gic-version=2, mte=on.",
    ),
    click.option(
        "--host-cpu", metavar="CPU", envvar="PYVMM_HOST_CPU",
        help=f"The emulated host's CPU ({DEFAULT_CPU} by default), as for QEMU's -cpu: "
        "max,sve384=off has SVE without 384 bits.",
    ),
    click.option(
        "--host-append", metavar="TEXT", envvar="PYVMM_HOST_APPEND",
        help="Add TEXT to the host kernel's command line: kvm-arm.mode=nvhe.",
    ),
)  # fmt: skip


def host_options(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Add the options to a command, which gets them as ``where: HostSettings``."""
    return added(*_OPTIONS)(_with_settings(command, "where"))


def emulated_options(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Add the options of an emulated host to a command, which gets ``settings: HostSettings``."""
    return added(*_OPTIONS[1:])(_with_settings(command, "settings"))


def _with_settings(command: Callable[..., _Result], name: str) -> Callable[..., _Result]:
    @functools.wraps(command)
    def with_settings(*args: object, host: str = "auto", **options: Any) -> _Result:
        model = options.pop("host_model")
        fields = ("kernel", "qemu", "machine", "cpu", "append")
        given = {key: options.pop(f"host_{key}") for key in fields}
        settings = HostSettings(kind=host, **settings_of(model, given))
        return command(*args, **{name: settings}, **options)

    return with_settings


def settings_of(model: str | None, given: Mapping[str, str | None]) -> dict[str, str]:
    """Return the fields of HostSettings of a model, if there is one, and of single options.

    Raises: UsageError, if there is no such model.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    if model is None:
        return chosen
    from pyvmm.host import models  # lazily: most runs have none

    return models.combined(model, chosen)


def run_here_or_forward(
    where: HostSettings,
    needs: Needs = NOTHING,
    ttys: Iterable[int] = (),
    *,
    saves: bool = False,
    restores: bool = False,
    gdb: str | None = None,
) -> None:
    """Run the command in an emulated host and exit, unless it runs on this machine's KVM.

    The command gets the files that it ``needs``. ``ttys`` are the numbers of the
    guest's terminals on ptys. A command that ``saves`` or ``restores`` snapshots reads the key of
    their marks. ``gdb`` is where debuggers of the guest connect on this machine.

    Raises: HostError, if neither is possible, or the emulated host cannot see a file.
    """
    if host.is_local(where):
        return
    if saves or restores:
        needs += own_key(make=saves)
    invocation = click.get_current_context().find_object(Invocation)
    arguments = invocation.arguments if invocation else []
    argv = ["pyvmm", *arguments]
    if gdb is None:
        raise SystemExit(host.forward(where, argv, needs, ttys))
    from pyvmm.control.debugging import DebugListener  # lazily: rarely used

    with DebugListener(gdb) as listener:
        say(f"for a debugger: target remote {listener.address}")
        raise SystemExit(host.forward(where, argv, needs, ttys, listener))


def own_key(*, make: bool) -> Needs:
    """Return the Needs of a command that uses the key of this user's snapshots.

    With ``make`` the key is made if it is missing: a command in the emulated host can only read it.

    Raises: HostError, if the host cannot see it: each command there would make another one.
    """
    from pyvmm.snapshot import mark  # lazily: few commands save or restore

    path = mark.key_path()
    real = Path(os.path.realpath(path))
    if hidden(real):
        raise HostError(
            f"the emulated host does not see the key of your snapshots, {path}: it has its own "
            f"{Path(*real.parts[:2])}",
            hint="set XDG_STATE_HOME to a directory elsewhere, as ~/.local/state",
        )
    if make:
        mark.made_key()
    return Needs(reads=(path,))
