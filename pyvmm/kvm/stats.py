"""The kernel's statistics of a VM or a vCPU: exits, and their reasons.

A statistics file describes itself: a header, a descriptor for each count, the values. A vCPU may
run while its file is read.
Source: Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD; struct kvm_stats_header and
kvm_stats_desc, linux/kvm.h.
"""

from __future__ import annotations

import functools
import os
import struct

from pyvmm.base.records import Record
from pyvmm.kvm.device import Fd

_HEADER = struct.Struct("<6I")  # flags, name_size, num_desc, id_offset, desc_offset, data_offset
_DESCRIPTOR = struct.Struct("<IhHII")  # flags, exponent, size, offset, bucket_size; then the name


class _Layout(Record):
    """A statistics file's description of itself."""

    names: tuple[tuple[str, int, int], ...]  # name, first value, values
    data_offset: int
    values: int


class Stats(Fd):
    """An open statistics file, from Vm.get_stats_fd or Vcpu.get_stats_fd."""

    @functools.cached_property
    def _layout(self) -> _Layout:
        return _describe(self.fd)

    def read(self) -> dict[str, int]:
        """Return the counts by KVM's names, without histograms."""
        layout = self._layout
        data = os.pread(self.fd, layout.values * 8, layout.data_offset)
        values = struct.unpack(f"<{len(data) // 8}Q", data)
        return {name: values[first] for name, first, count in layout.names if count == 1}


def _describe(fd: int) -> _Layout:
    _, name_size, count, _, descriptors, data_offset = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    size = _DESCRIPTOR.size + name_size
    table = os.pread(fd, count * size, descriptors)
    names = []
    values = 0
    for start in range(0, len(table), size):
        _, _, length, offset, _ = _DESCRIPTOR.unpack_from(table, start)
        name = table[start + _DESCRIPTOR.size : start + size].split(b"\0")[0].decode()
        names.append((name, offset // 8, length))
        values = max(values, offset // 8 + length)
    return _Layout(tuple(names), data_offset, values)
