"""The options for where a command runs; commands that need KVM have them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from pyvmm import host
from pyvmm.cli import Invocation
from pyvmm.commands._options import added
from pyvmm.host.settings import (
    DEFAULT_CPU,
    DEFAULT_KERNEL,
    DEFAULT_QEMU,
    KERNEL_SUITES,
    KINDS,
    QEMU_SUITES,
    HostSettings,
)
from pyvmm.host.share import NOTHING, Needs

_Result = TypeVar("_Result")

CHOICE = "VERSION|SUITE|PATH"

_OPTIONS = (
    click.option(
        "--host", type=click.Choice(KINDS), default="auto", envvar="PYVMM_HOST",
        help="Where to run. local: this machine's KVM. emulated: an emulated arm64 host. auto: "
        "local on an arm64 machine with /dev/kvm, else emulated.",
    ),
    click.option(
        "--host-kernel", metavar=CHOICE, default=DEFAULT_KERNEL, envvar="PYVMM_HOST_KERNEL",
        help=f"The emulated host's kernel: {', '.join(KERNEL_SUITES)} or another of Debian's "
        "versions, a Debian suite (sid), or a path. `pyvmm host list` shows the versions.",
    ),
    click.option(
        "--host-qemu", metavar=CHOICE, default=DEFAULT_QEMU, envvar="PYVMM_HOST_QEMU",
        help=f"The emulated host's QEMU: {', '.join(QEMU_SUITES)} or another version, a suite, "
        "or a path.",
    ),
    click.option(
        "--host-cpu", metavar="CPU", default=DEFAULT_CPU, envvar="PYVMM_HOST_CPU",
        help="The emulated host's CPU, as for QEMU's -cpu: max,sve384=off has SVE without 384 "
        "bits.",
    ),
    click.option(
        "--host-append", metavar="TEXT", default="", envvar="PYVMM_HOST_APPEND", show_default=False,
        help="Add TEXT to the host kernel's command line: kvm-arm.mode=nvhe.",
    ),
)  # fmt: skip


def host_options(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Add the five options to a command, which gets them as ``where: HostSettings``."""
    return added(*_OPTIONS)(_with_settings(command, "where"))


def emulated_options(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Add the options of an emulated host to a command, which gets ``settings: HostSettings``."""
    return added(*_OPTIONS[1:])(_with_settings(command, "settings"))


def _with_settings(command: Callable[..., _Result], name: str) -> Callable[..., _Result]:
    @functools.wraps(command)
    def with_settings(*args: object, host: str = "auto", **options: Any) -> _Result:
        fields = ("kernel", "qemu", "cpu", "append")
        settings = HostSettings(kind=host, **{key: options.pop(f"host_{key}") for key in fields})
        return command(*args, **{name: settings}, **options)

    return with_settings


def run_here_or_forward(
    where: HostSettings, needs: Needs = NOTHING, ttys: Iterable[int] = (), *, saves: bool = False
) -> None:
    """Run the command in an emulated host and exit, unless it runs on this machine's KVM.

    The command gets the files that it ``needs``. ``ttys`` are the numbers of the
    guest's terminals on ptys. A command that ``saves`` snapshots reads the key of their marks.

    Raises: HostError, if neither is possible, or the emulated host cannot see a file.
    """
    if host.is_local(where):
        return
    if saves:
        needs += own_key()
    invocation = click.get_current_context().find_object(Invocation)
    arguments = invocation.arguments if invocation else []
    raise SystemExit(host.forward(where, ["pyvmm", *arguments], needs, ttys))


def own_key() -> Needs:
    """Make the key of this user's snapshots, if there is none, and return it as a need.

    A command in the emulated host reads it, but need not write beside it.
    """
    from pyvmm.snapshot import mark  # lazily: few commands save

    mark.made_key()
    return Needs(reads=(mark.key_path(),))
