"""The options for virtio devices, as Config.devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from pyvmm.base.records import Record
from pyvmm.base.units import parse_size, read_named
from pyvmm.config import Balloon, DeviceConfig, Disk, Hotplug, Pmem, Rng
from pyvmm.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])


class DeviceOption(Record):
    """An option, and the function that makes devices of its value."""

    name: str  # of click's parameter
    option: Callable[[_Command], _Command]
    read: Callable[[Any], list[DeviceConfig]]


def _read_hotplug(text: str | None) -> list[DeviceConfig]:
    """Read SIZE or SIZE,block=SIZE."""
    if text is None:
        return []
    sizes = text.split(",block=")
    if len(sizes) > 2 or "," in sizes[0]:
        raise UsageError(f"--hotplug {text}: only block=SIZE can follow the size")
    size, *blocks = (read_named("--hotplug", parse_size, text) for text in sizes)
    return [Hotplug(size=size, block_size=blocks[0] if blocks else None)]


# In the order in which the guest finds the devices.
OPTIONS = (
    DeviceOption(  # before the others, whose queues may lie in its memory
        "hotplug",
        click.option(
            "--hotplug",
            metavar="SIZE",
            help="Room for more memory, which `pyvmm memory` plugs.",
        ),
        _read_hotplug,
    ),
    DeviceOption(
        "balloon",
        click.option("--balloon", is_flag=True, help="Let `pyvmm balloon` take memory back."),
        lambda asked: [Balloon()] if asked else [],
    ),
    DeviceOption(
        "disk",
        click.option(
            "-d",
            "--disk",
            multiple=True,
            metavar="FILE[,ro][,direct]",
            help="Give the guest a disk, a raw image or a block device; repeatable.",
        ),
        lambda values: [read_disk(text) for text in values],
    ),
    DeviceOption(
        "pmem",
        click.option(
            "--pmem",
            multiple=True,
            metavar="FILE[,ro]",
            help="Give the guest a file as persistent memory; repeatable.",
        ),
        lambda values: [read_pmem(text) for text in values],
    ),
    DeviceOption(
        "rng",
        click.option("--rng", is_flag=True, help="Give the guest a source of entropy."),
        lambda asked: [Rng()] if asked else [],
    ),
)


def read_disk(text: str) -> Disk:
    """Read a value of -d.

    Raises: UsageError.
    """
    path, words = _file_and_words("-d", text, ("ro", "direct"))
    return Disk(path=path, read_only="ro" in words, direct="direct" in words)


def read_pmem(text: str) -> Pmem:
    """Read a value of --pmem.

    Raises: UsageError.
    """
    path, words = _file_and_words("--pmem", text, ("ro",))
    return Pmem(path=path, read_only="ro" in words)


def _file_and_words(option: str, text: str, known: tuple[str, ...]) -> tuple[Path, list[str]]:
    path, *words = text.split(",")
    if not path:
        form = "".join(f"[,{word}]" for word in known)
        raise UsageError(f"{option} {text}: no file", hint=f"{option} FILE{form}")
    for word in words:
        if word not in known:
            raise UsageError(
                f"{option} {text}: {word!r} is not one of {', '.join(known)}",
                hint="for a file with a comma in its name, give a link to it",
            )
    return Path(path).absolute(), words  # a snapshot may be restored from elsewhere


def device_options(command: _Command) -> _Command:
    """Add the options to a command; device_configs() converts them."""
    for item in reversed(OPTIONS):
        command = item.option(command)
    return command


def device_configs(options: dict[str, Any]) -> tuple[DeviceConfig, ...]:
    """Return the devices that the options ask for.

    Raises: UsageError, for text that cannot be read.
    """
    return tuple(device for item in OPTIONS for device in item.read(options[item.name]))


def device_files(devices: tuple[DeviceConfig, ...]) -> Iterator[Path]:
    """Yield the files that devices read or write."""
    for device in devices:
        yield from device.files()
