"""The vector lengths of a machine."""

from __future__ import annotations

import pytest

from pyvmm import layout
from pyvmm.arm64 import vl
from pyvmm.config import SveRequest
from pyvmm.errors import HostError
from pyvmm.kvm import regs, sve
from pyvmm.kvm.system import System
from tests.machine.conftest import Boot

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def host_vls() -> frozenset[int]:
    """Return the host's vector lengths; skip the test if there are none."""
    with System.open() as system:
        lengths = sve.host_vector_lengths(system)
    if not lengths:
        pytest.skip("the host has no SVE")
    return lengths


def test_every_vcpu_gets_each_legal_set_and_the_guest_sees_it(
    boot: Boot, host_vls: frozenset[int]
) -> None:
    for asked in vl.legal_sets(host_vls):
        machine = boot("quadwords", x2=layout.EXIT.base, vcpus=3, sve=SveRequest(vls=asked))

        assert [sve.read_vls(vcpu) for vcpu in machine.vcpus] == [asked] * 3
        assert machine.vls == asked
        assert machine.run() == max(asked) // 128
        machine.close()


def test_illegal_sets_are_refused_with_sets_that_work(boot: Boot, host_vls: frozenset[int]) -> None:
    legal = vl.legal_sets(host_vls)
    without_first = [vls - {128} for vls in legal if vls - {128}]
    too_long = [host_vls | {length} for length in vl.LENGTHS - host_vls]

    for asked in [*without_first, *too_long]:
        with pytest.raises(HostError) as caught:
            boot("quadwords", sve=SveRequest(vls=asked))

        assert caught.value.hint is not None
        assert "`sve.vls`=" in caught.value.hint


def test_sve_is_on_at_the_hosts_full_set_by_default(boot: Boot, host_vls: frozenset[int]) -> None:
    assert boot("spin").vls == host_vls


def test_sve_can_be_limited_and_disabled(boot: Boot, host_vls: frozenset[int]) -> None:
    bounded = boot("spin", sve=SveRequest(max_vl=256))
    off = boot("spin", sve=SveRequest(off=True))

    assert bounded.vls == {length for length in host_vls if length <= 256}
    assert off.vls == frozenset()
    assert regs.SVE_VLS not in off.vcpus[0].get_reg_list()
