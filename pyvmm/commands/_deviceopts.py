"""The options for virtio devices, as Config.devices."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, Final

import click

from pyvmm.base.units import parse_size, read_named
from pyvmm.commands._options import added
from pyvmm.config import Balloon, DeviceConfig, Disk, Hotplug, Pmem, Rng, Share, Vsock
from pyvmm.errors import UsageError
from pyvmm.host.share import Needs

VIRTIOFSD: Final = "PYVMM_VIRTIOFSD"  # the variable that has the command of virtiofsd

# device_configs() converts them.
device_options = added(
    click.option(
        "--hotplug", metavar="SIZE", help="Let `pyvmm memory` plug up to SIZE more memory."
    ),
    click.option(
        "--balloon", is_flag=True,
        help="Give the guest a balloon, with which `pyvmm balloon` takes memory back.",
    ),
    click.option(
        "-d", "--disk", multiple=True, metavar="FILE[,ro][,direct]",
        help="Give the guest a disk, a raw image or a block device; repeatable.",
    ),
    click.option(
        "--pmem", multiple=True, metavar="FILE[,ro]",
        help="Give the guest a file as persistent memory; repeatable.",
    ),
    click.option("--rng", is_flag=True, help="Give the guest a source of entropy."),
    click.option(
        "--share", multiple=True, metavar="DIR,TAG[,ro]",
        help="Give the guest a directory (virtio-fs), which it mounts by TAG; repeatable.",
    ),
    click.option(
        "--vsock", type=int, metavar="CID",
        help="Give the guest sockets (AF_VSOCK) to its host, with that address: 3 or higher.",
    ),
)  # fmt: skip


def _read_hotplug(text: str) -> Hotplug:
    """Read SIZE or SIZE,block=SIZE."""
    sizes = text.split(",block=")
    if len(sizes) > 2 or "," in sizes[0]:
        raise UsageError(f"--hotplug {text}: only block=SIZE can follow the size")
    size, *blocks = (read_named("--hotplug", parse_size, text) for text in sizes)
    return Hotplug(size=size, block_size=blocks[0] if blocks else None)


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


def read_share(text: str) -> Share:
    """Read a value of --share.

    Raises: UsageError.
    """
    path, *words = text.split(",")
    read_only = words[1:] == ["ro"]
    if not path or len(words) != 1 + read_only:
        raise UsageError(f"--share {text}: not DIR,TAG or DIR,TAG,ro")
    given = shlex.split(os.environ.get(VIRTIOFSD, ""))
    program = {"program": tuple(given)} if given else {}
    return Share(path=Path(path).absolute(), tag=words[0], read_only=read_only, **program)


def forwarded_programs() -> Needs:
    """Get the arm64 program that --share needs in an emulated host, and name it there."""
    from pyvmm.host.parts.tools import virtiofsd  # lazily: rarely used
    from pyvmm.host.progress import Progress

    tool = virtiofsd(Progress(), "arm64")
    assert tool.root is not None
    os.environ[VIRTIOFSD] = shlex.join(tool.command)
    return Needs(reads=(tool.root,))


def _file_and_words(option: str, text: str, known: tuple[str, ...]) -> tuple[Path, list[str]]:
    path, *words = text.split(",")
    if not path:
        form = "".join(f"[,{word}]" for word in known)
        raise UsageError(f"{option} {text}: no file", hint=f"{option} FILE{form}")
    for word in words:
        if word not in known:
            raise UsageError(
                f"{option} {text}: {word!r} is not one of {', '.join(known)}",
                hint="make a symbolic link to the file, and give the link: its name needs no comma",
            )
    return Path(path).absolute(), words  # a snapshot may be restored in another directory


def device_configs(options: dict[str, Any]) -> tuple[DeviceConfig, ...]:
    """Return the devices that the options ask for, in the order in which the guest finds them.

    Raises: UsageError, for text that cannot be read.
    """
    devices: list[DeviceConfig] = []
    if options["hotplug"] is not None:  # first: the queues of other devices may lie in its memory
        devices.append(_read_hotplug(options["hotplug"]))
    if options["balloon"]:
        devices.append(Balloon())
    devices += map(read_disk, options["disk"])
    devices += map(read_pmem, options["pmem"])
    if options["rng"]:
        devices.append(Rng())
    devices += map(read_share, options["share"])
    if options["vsock"] is not None:
        devices.append(Vsock(cid=options["vsock"]))
    return tuple(devices)


def device_needs(devices: tuple[DeviceConfig, ...]) -> Needs:
    """Return the files that devices read or write."""
    needs = Needs()
    for device in devices:
        files = device.files()
        read_only = getattr(device, "read_only", False)
        needs += Needs(reads=files) if read_only else Needs(updates=files)
    return needs
