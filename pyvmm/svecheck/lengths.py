"""The vector lengths that this machine's own programs have, by asking the kernel and not KVM."""

from __future__ import annotations

import ctypes
import threading

from pyvmm.arm64.vl import LENGTHS, VlSet

# Source: linux/prctl.h; Documentation/arch/arm64/sve.rst, "prctl() extensions"
_PR_SVE_SET_VL = 50
_VL_LEN_MASK = 0xFFFF


def own_vls() -> VlSet:
    """The lengths in bits; none where the kernel gives its programs no SVE.

    Each length is tried on a thread that ends with the call, as trying one selects it.
    """
    found: set[int] = set()

    def try_all() -> None:
        prctl = ctypes.CDLL(None).prctl
        for length in LENGTHS:
            answer = prctl(_PR_SVE_SET_VL, ctypes.c_ulong(length // 8), 0, 0, 0)
            if answer >= 0:
                found.add((answer & _VL_LEN_MASK) * 8)

    thread = threading.Thread(target=try_all)
    thread.start()
    thread.join()
    return frozenset(found)
