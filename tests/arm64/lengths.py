"""A model of the kernel's rule for SVE vector lengths, and strategies for sets of them."""

from __future__ import annotations

from hypothesis import strategies as st

from pyvmm.arm64 import vl

FULL_512 = frozenset({128, 256, 384, 512})
POWERS_512 = frozenset({128, 256, 512})


def kernel_accepts(asked: frozenset[int], host: frozenset[int]) -> bool:
    """Do what set_sve_vls() of arch/arm64/kvm/guest.c does; vq is a length in quadwords."""
    max_vq = 0
    for vq in range(1, 17):
        if vq * 128 in asked:
            max_vq = vq
    if max_vq > max(host, default=0) // 128:
        return False
    for vq in range(1, max_vq + 1):
        if (vq * 128 in asked) != (vq * 128 in host):
            return False
    return max_vq != 0


lengths = st.sampled_from(sorted(vl.LENGTHS))
sets = st.frozensets(lengths)
hosts = st.frozensets(lengths).map(lambda some: some | {128})  # every host with SVE has 128
