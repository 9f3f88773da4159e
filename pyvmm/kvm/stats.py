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

from pyvmm.kvm.device import Fd

_HEADER = struct.Struct("<6I")  # flags, name_size, num_desc, id_offset, desc_offset, data_offset
_DESCRIPTOR = struct.Struct("<IhHII")  # flags, exponent, size, offset, bucket_size; then the name


class Stats(Fd):
    """An open statistics file, from Vm.get_stats_fd or Vcpu.get_stats_fd."""

    def read(self) -> dict[str, int]:
        """Return the counts by KVM's names, without histograms."""
        counts, offset, size = self._layout
        values = struct.unpack(f"<{size}Q", os.pread(self.fd, size * 8, offset))
        return {name: values[index] for name, index in counts.items()}

    @functools.cached_property
    def _layout(self) -> tuple[dict[str, int], int, int]:
        """The index of each count's value; the offset of all values, and how many there are."""
        header = _HEADER.unpack(os.pread(self.fd, _HEADER.size, 0))
        _, name_size, number, _, descriptors, values_offset = header
        size = _DESCRIPTOR.size + name_size
        table = os.pread(self.fd, number * size, descriptors)
        counts: dict[str, int] = {}
        values = 0
        for start in range(0, len(table), size):
            _, _, length, offset, _ = _DESCRIPTOR.unpack_from(table, start)
            name = table[start + _DESCRIPTOR.size : start + size].split(b"\0")[0].decode()
            if length == 1:
                counts[name] = offset // 8
            values = max(values, offset // 8 + length)
        return counts, values_offset, values
