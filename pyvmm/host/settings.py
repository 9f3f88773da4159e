"""The user's settings for an emulated host: kernel, QEMU, machine, CPU."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from pyvmm.base.records import Record
from pyvmm.errors import UsageError

# The version series of each Debian release, which keeps it.  sid's was current at the time of
# writing.
# Test matrices use these.
KERNEL_SUITES: Final = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.2": "sid"}
QEMU_SUITES: Final = {"5.2": "bullseye", "7.2": "bookworm", "10": "trixie", "11": "sid"}

# Suites that get newer versions -> the release that each one builds on.
MOVING_SUITES: Final = {
    "sid": "trixie",
    "forky": "trixie",
    "trixie-backports": "trixie",
    "bookworm-backports": "bookworm",
}
SUITES: Final = tuple(dict.fromkeys((*KERNEL_SUITES.values(), *MOVING_SUITES)))

DEFAULT_KERNEL: Final = "6.1"
DEFAULT_QEMU: Final = "7.2"  # newer ones emulate about a fifth slower
# SVE has the lengths 128, 256, 512, 1024 and 2048, so guests can have 128,256,512 as on an A64FX.
DEFAULT_CPU: Final = "max,sve2048=on"

LONGEST_APPEND: Final = 1024  # of the 2048 bytes that arm64 takes (COMMAND_LINE_SIZE)

# A property of QEMU's machine.  A comma would begin another one.
PROPERTY: Final = re.compile(r"[a-z][a-z0-9-]*=[\x21-\x2b\x2d-\x7e]+")
# Properties that pyvmm needs as they are
OWN_PROPERTIES: Final = {
    "virtualization": "without EL2 the host would have no KVM",
    "memory-backend": "pyvmm keeps the host's memory in a file of its own",
    "type": "pyvmm's hosts are QEMU's machine virt",
    "accel": "pyvmm's hosts are emulated by TCG",
}

KINDS: Final = ("auto", "local", "emulated")


class Product(Record):
    """A product whose version `host.kernel` or `host.qemu` chooses."""

    name: str  # the beginning of its trees' names
    title: str
    field: str  # the settings' field, as errors name it
    suites: dict[str, str]  # version -> the release that has it


LINUX: Final = Product("linux", "Linux", "host.kernel", KERNEL_SUITES)
QEMU: Final = Product("qemu", "QEMU", "host.qemu", QEMU_SUITES)
VERSION: Final = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")


class HostSettings(Record):
    """The place where a command runs, and the settings of an emulated host.

    ``kernel`` and ``qemu`` are choices: a version (6.12, or in full 6.12.117), a Debian suite of
    SUITES, or a path.  A kernel's path is that of an uncompressed arm64 Image, or of a kernel
    package's unpacked tree.  QEMU's path is that of a qemu-system-aarch64.

    ``cpu`` is QEMU's ``-cpu`` argument.  ``machine`` has properties for ``-M virt,...``.
    ``append`` is added to the kernel's command line.
    """

    kind: str = "auto"
    kernel: str = DEFAULT_KERNEL
    qemu: str = DEFAULT_QEMU
    cpu: str = DEFAULT_CPU
    append: str = ""
    machine: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"`host.kind`={self.kind}: not one of {', '.join(KINDS)}")
        _check_choice(LINUX, self.kernel)
        _check_choice(QEMU, self.qemu)
        if not self.cpu or any(c.isspace() or not c.isprintable() for c in self.cpu):
            raise UsageError(
                f"`host.cpu`={self.cpu!r}: not a CPU QEMU could know",
                hint="for example `host.cpu`=max,sve384=off",
            )
        machine_properties(self.machine)
        if not self.append.isprintable() or len(self.append) > LONGEST_APPEND:
            raise UsageError(
                f"`host.append`={self.append!r}: not text for a kernel command line",
                hint="for example `host.append`=kvm-arm.mode=nvhe",
            )

    @property
    def customised(self) -> bool:
        """Whether any property of the emulated host differs from the default."""
        chosen = (self.kernel, self.qemu, self.cpu, self.machine, self.append)
        return chosen != (DEFAULT_KERNEL, DEFAULT_QEMU, DEFAULT_CPU, "", "")

    @property
    def label(self) -> str:
        """A short name for people: kernel, QEMU, machine and CPU."""
        machine = f", -M {self.machine}" if self.machine else ""
        append = f", {self.append}" if self.append else ""
        return (f"Linux {Path(self.kernel).name}, QEMU {Path(self.qemu).name}, "
                f"-cpu {self.cpu}{machine}{append}")  # fmt: skip


def machine_properties(text: str) -> dict[str, str]:
    """Return the properties in a ``machine`` setting by name.

    Raises: UsageError, for text that is not NAME=VALUE,..., and for a property that pyvmm sets.
    """
    field = f"`host.machine`={text!r}"
    found: dict[str, str] = {}
    for word in text.split(",") if text else ():
        if not PROPERTY.fullmatch(word):
            raise UsageError(
                f"{field}: {word!r} is not a property of QEMU's machine virt, NAME=VALUE",
                hint="for example `host.machine`=gic-version=2",
            )
        name, _, value = word.partition("=")
        if reason := OWN_PROPERTIES.get(name):
            raise UsageError(f"{field}: {reason}", hint=f"leave {name} out")
        found[name] = value
    return found


def is_path(choice: str) -> bool:
    """Return whether a choice is a path: it contains a slash."""
    return os.sep in choice


def matches(asked: str, version: str) -> bool:
    """Return whether a version matches the requested one: 6.1 matches 6.1.176."""
    return version == asked or version.startswith(f"{asked}.")


def suites_for(product: Product, version: str) -> list[str]:
    """Return the suites that could have a version, the likeliest first.

    A release keeps its series.  The other suites are newer than the release that they build on.
    """
    releases = [suite for known, suite in product.suites.items()
                if matches(known, version) or matches(version, known)]  # fmt: skip
    series = {suite: known for known, suite in product.suites.items()}
    newer = [suite for suite, base in MOVING_SUITES.items()
             if numbers(version) > numbers(series[base])]  # fmt: skip
    return list(dict.fromkeys((*releases, *newer)))


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, for comparisons."""
    return tuple(map(int, version.split(".")))


def _check_choice(product: Product, value: str) -> None:
    """Refuse a missing path, an unknown suite, and a version that no suite could have."""
    field = f"`{product.field}`="
    known = ", ".join(product.suites)
    if is_path(value):
        try:
            Path(value).stat()
        except OSError as error:
            raise UsageError(
                f"{field}{value}: {error.strerror}", hint=f"or one of {known}"
            ) from error
    elif VERSION.fullmatch(value):
        if not suites_for(product, value):
            raise UsageError(
                f"{field}{value}: no Debian suite that pyvmm knows has that version ({known})",
                hint=f"{field}PATH takes any other {product.title}",
            )
    elif value not in SUITES:
        raise UsageError(
            f"{field}{value}: not a version ({known}), not a Debian suite "
            f"({', '.join(SUITES)}) and not a path",
            hint=f"a path holds a /, for example {field}./{value or 'FILE'}",
        )
