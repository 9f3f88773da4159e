"""The C extension, which exists on arm64 only, loaded at its first use."""

from __future__ import annotations

import functools
import os
from typing import Any

from pyvmm.base.records import Record
from pyvmm.errors import HostError


class Native(Record):
    """The two parts of the extension: cffi's functions, and the compiled ones."""

    ffi: Any
    lib: Any


@functools.cache
def native() -> Native:
    """Return the extension.

    Raises: HostError, on a machine without it.
    """
    try:
        from pyvmm.kvm import _kvm
    except ImportError as error:
        machine = os.uname().machine
        if machine != "aarch64":
            raise HostError(
                f"KVM for arm64 needs an arm64 machine, and this one is {machine}",
                hint="use `host`=emulated: an emulated arm64 machine runs the command",
            ) from error
        raise HostError(
            f"pyvmm's extension for KVM cannot be loaded: {error}",
            hint="reinstall pyvmm with a C compiler: pip install --force-reinstall pyvmm-arm64",
        ) from error
    return Native(_kvm.ffi, _kvm.lib)


def counter_frequency() -> int:
    """Return the system counter's frequency in Hz: CNTFRQ_EL0."""
    return int(native().lib.pyvmm_counter_frequency())


def sync_code(view: memoryview) -> None:
    """Make instructions that were written to memory visible to all CPUs.

    Source: Arm ARM DDI 0487, B2.2 "Concurrent modification and execution of instructions".
    """
    ffi, lib = native().ffi, native().lib
    lib.pyvmm_sync_code(ffi.from_buffer(view), len(view))


def address(buffer: bytearray) -> int:
    """Return the buffer's address in this process, valid until it is resized or freed."""
    ffi = native().ffi
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))
