"""Root without the capabilities that override file modes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Final

# Source: linux/capability.h
VERSION_3: Final = 0x2008_0522
DAC_OVERRIDE: Final = 1
DAC_READ_SEARCH: Final = 2


class Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class Data(ctypes.Structure):
    """The capabilities 0 to 31; a second one has 32 to 63."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextlib.contextmanager
def bound_by_modes() -> Iterator[None]:
    """Make file modes bind this thread in the block, also if it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(VERSION_3, 0), (Data * 2)()
    _check(libc.capget(ctypes.byref(header), data))
    before = data[0].effective
    data[0].effective = before & ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    _check(libc.capset(ctypes.byref(header), data))
    try:
        yield
    finally:
        data[0].effective = before
        _check(libc.capset(ctypes.byref(header), data))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
