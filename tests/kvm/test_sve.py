from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import sve
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import VcpuFeature
from tests.kvm.guest import guest

pytestmark = pytest.mark.kvm

FEATURES = (VcpuFeature.PSCI_0_2, VcpuFeature.SVE)
PR_SVE_GET_VL = 51  # Source: linux/prctl.h
DEFAULT_LENGTH = Path("/proc/sys/abi/sve_default_vector_length")  # bytes


@pytest.fixture
def host() -> list[int]:
    """Return the host's vector lengths, shortest first."""
    with System.open() as system:
        lengths = sorted(sve.host_vector_lengths(system))
    if not lengths:
        pytest.skip("this host has no SVE")
    return lengths


def test_host_has_vector_lengths_exactly_with_the_capability() -> None:
    with System.open() as system:
        assert bool(sve.host_vector_lengths(system)) == system.has(Cap.ARM_SVE)


def test_init_with_sve_names_the_feature_when_the_host_lacks_it() -> None:
    with guest("spin") as made:
        if made.system.has(Cap.ARM_SVE):
            pytest.skip("this host has SVE")
        with (
            made.system.create_vm() as vm,
            vm.create_vcpu(0) as vcpu,
            pytest.raises(KvmError, match=r"features=\[PSCI_0_2 SVE]") as caught,
        ):
            vcpu.init(vm.preferred_target(), FEATURES)

    assert caught.value.errno == errno.EINVAL
    assert "the host lacks one of these features" in (caught.value.hint or "")


def test_new_vcpu_has_the_hosts_lengths(host: list[int]) -> None:
    with guest("spin", features=FEATURES) as made:
        assert sorted(sve.read_vls(made.vcpu)) == host
    assert host[0] == 128


def test_write_vls_accepts_every_prefix_of_the_hosts_lengths(host: list[int]) -> None:
    for count in range(1, len(host) + 1):
        with guest("spin", features=FEATURES) as made:
            sve.write_vls(made.vcpu, host[:count])
            made.vcpu.finalize(VcpuFeature.SVE)

            assert sorted(sve.read_vls(made.vcpu)) == host[:count]


def test_write_vls_refuses_a_gap_or_an_empty_set_and_changes_nothing(host: list[int]) -> None:
    longer = max(host) + 128
    with guest("spin", features=FEATURES) as made:
        for lengths in (set(), {longer}, {*host, longer}, set(host[1:])):
            with pytest.raises(KvmError, match="SVE_VLS") as caught:
                sve.write_vls(made.vcpu, lengths)
            assert caught.value.errno == errno.EINVAL

        assert sorted(sve.read_vls(made.vcpu)) == host


@pytest.mark.parametrize("length", [0, -128, 100, 64, 513 * 128])
def test_bitmap_refuses_an_invalid_vector_length(length: int) -> None:
    refusal = pytest.raises(ValueError, match=f"^{length} is not a multiple of 128")
    with guest("spin", features=FEATURES) as made, refusal:
        sve.write_vls(made.vcpu, [length])


def test_own_lengths_are_equal_by_prctl_and_rdvl(host: list[int]) -> None:
    own = sve.own_vector_lengths()

    assert own.prctl == own.rdvl
    assert set(host) <= own.prctl
    assert int(DEFAULT_LENGTH.read_text(encoding="ascii")) * 8 in own.prctl


def test_own_lengths_are_empty_without_sve() -> None:
    if DEFAULT_LENGTH.exists():
        pytest.skip("this host has SVE")

    assert sve.own_vector_lengths() == sve.OwnLengths(frozenset(), frozenset())


def test_own_lengths_leave_the_callers_length_unchanged(host: list[int]) -> None:
    libc = ctypes.CDLL(None)
    before = libc.prctl(PR_SVE_GET_VL)

    sve.own_vector_lengths()

    assert before > 0
    assert libc.prctl(PR_SVE_GET_VL) == before
