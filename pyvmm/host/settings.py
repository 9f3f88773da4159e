"""What an emulated host models, as the user asks for it: kernel, QEMU, CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pyvmm.errors import UsageError
from pyvmm.records import Record

# Debian suites that hold each kernel and QEMU: --host-kernel and --host-qemu take these names.
KERNEL_SUITES: Final = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.2": "sid"}
QEMU_SUITES: Final = {"5.2": "bullseye", "7.2": "bookworm", "10": "trixie", "11": "sid"}

DEFAULT_KERNEL: Final = "6.1"
DEFAULT_QEMU: Final = "7.2"  # newer ones emulate about a fifth slower
# The power-of-two lengths 128 to 2048, as hardware has them: 128,256,512 then works as on an A64FX.
DEFAULT_CPU: Final = "max,sve2048=on"

LONGEST_APPEND: Final = 1024  # of the 2048 bytes that arm64 takes (COMMAND_LINE_SIZE)

KINDS: Final = ("auto", "local", "emulated")


class HostSettings(Record):
    """Where a command runs, and what an emulated host models.

    ``kernel`` and ``qemu`` are names of the tables above, or paths (of an uncompressed arm64
    Image or a kernel package's unpacked tree; of a qemu-system-aarch64).  ``cpu`` is QEMU's
    ``-cpu`` argument, ``append`` what its kernel's command line has beside pyvmm's own words.
    """

    kind: str = "auto"
    kernel: str = DEFAULT_KERNEL
    qemu: str = DEFAULT_QEMU
    cpu: str = DEFAULT_CPU
    append: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"--host {self.kind}: not one of {', '.join(KINDS)}")
        _check_choice("--host-kernel", self.kernel, KERNEL_SUITES)
        _check_choice("--host-qemu", self.qemu, QEMU_SUITES)
        if not self.cpu or any(c.isspace() or not c.isprintable() for c in self.cpu):
            raise UsageError(
                f"--host-cpu {self.cpu!r}: not a CPU QEMU could know",
                hint="for example --host-cpu max,sve384=off",
            )
        if not self.append.isprintable() or len(self.append) > LONGEST_APPEND:
            raise UsageError(
                f"--host-append {self.append!r}: not words of a kernel command line",
                hint="for example --host-append kvm-arm.mode=nvhe",
            )

    @property
    def customised(self) -> bool:
        """Whether anything of the emulated host was asked for by name."""
        asked = (self.kernel, self.qemu, self.cpu, self.append)
        return asked != (DEFAULT_KERNEL, DEFAULT_QEMU, DEFAULT_CPU, "")

    @property
    def label(self) -> str:
        """A short name for people: kernel, QEMU and CPU."""
        append = f", {self.append}" if self.append else ""
        return (f"Linux {Path(self.kernel).name}, QEMU {Path(self.qemu).name}, "
                f"-cpu {self.cpu}{append}")  # fmt: skip


def _check_choice(option: str, value: str, table: dict[str, str]) -> None:
    """Refuse what is neither a known version nor a path that exists."""
    if value in table:
        return
    known = ", ".join(table)
    if os.sep not in value:
        raise UsageError(
            f"{option} {value}: not a version pyvmm knows ({known}) and not a path",
            hint=f"a path holds a /, for example {option} ./{value or 'FILE'}",
        )
    if not Path(value).exists():
        raise UsageError(f"{option} {value}: no such file", hint=f"or one of {known}")
