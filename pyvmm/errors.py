"""Every deliberate error of pyvmm, and the exit code of each.

    VmmError                1    the guest, or a verdict, failed
     +- UsageError          2    the request is invalid on every machine
     |   +- ImageError      2    the image cannot be booted
     |       +- DamagedImage     it is truncated or damaged
     +- HostError           3    this machine (or the emulated host) lacks something
     |   +- KvmError        3    the kernel refused an ioctl
     +- GuestError          1    the guest did something that no machine can continue from
     +- TimeoutExpired    124    the run reached its `timeout_s`

A message names the object, what failed and the reason; ``hint`` is one thing to type or change.
Both name fields of Config in backquotes: `vcpus`. The command line shows its options instead.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_HOST = 3
EXIT_TIMEOUT = 124
EXIT_SIGNAL = 128  # plus the signal's number


class VmmError(Exception):
    """The base of every deliberate error: a message, and a hint about the next step."""

    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(VmmError):
    """A request that is invalid on every machine."""

    exit_code = EXIT_USAGE


class ImageError(UsageError):
    """An image that cannot be booted: missing, damaged, or for another machine."""


class DamagedImage(ImageError):
    """An image that is truncated or damaged."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="copy or download it again")


class HostError(VmmError):
    """Something that is missing on the machine where the command runs."""

    exit_code = EXIT_HOST


class KvmError(HostError):
    """An ioctl the kernel refused: its name, its arguments, the errno, and a hint."""

    def __init__(self, ioctl: str, arguments: str, errno: int, *, hint: str | None = None) -> None:
        self.ioctl = ioctl
        self.arguments = arguments
        self.errno = errno
        super().__init__(
            f"{ioctl}({arguments}): {os.strerror(errno)} [{self.errno_name}]", hint=hint
        )

    @property
    def errno_name(self) -> str:
        """The errno's name, such as EINVAL, or its number if it has none."""
        return _errno.errorcode.get(self.errno, str(self.errno))


class GuestError(VmmError):
    """An action of the guest after which the machine cannot continue."""


class TimeoutExpired(VmmError):
    """A guest that did not end within Config's `timeout_s`."""

    exit_code = EXIT_TIMEOUT
