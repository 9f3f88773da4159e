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
    """The host's vector lengths, shortest first."""
    with System.open() as system:
        lengths = sorted(sve.host_vector_lengths(system))
    if not lengths:
        pytest.skip("this host has no SVE")
    return lengths


def test_host_vector_lengths_are_there_exactly_with_the_capability() -> None:
    with System.open() as system:
        assert bool(sve.host_vector_lengths(system)) == system.has(Cap.ARM_SVE)


def test_init_with_sve_where_the_host_has_none_says_so() -> None:
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


def test_new_vcpu_has_the_host_s_lengths(host: list[int]) -> None:
    with guest("spin", features=FEATURES) as made:
        assert sorted(sve.read_vls(made.vcpu)) == host
    assert host[0] == 128


def test_every_beginning_of_the_host_s_lengths_can_be_chosen(host: list[int]) -> None:
    for count in range(1, len(host) + 1):
        with guest("spin", features=FEATURES) as made:
            sve.write_vls(made.vcpu, host[:count])
            made.vcpu.finalize(VcpuFeature.SVE)

            assert sorted(sve.read_vls(made.vcpu)) == host[:count]


def test_set_with_a_gap_or_none_is_refused_and_changes_nothing(host: list[int]) -> None:
    longer = max(host) + 128
    with guest("spin", features=FEATURES) as made:
        for lengths in (set(), {longer}, {*host, longer}, set(host[1:])):
            with pytest.raises(KvmError, match="SVE_VLS") as caught:
                sve.write_vls(made.vcpu, lengths)
            assert caught.value.errno == errno.EINVAL

        assert sorted(sve.read_vls(made.vcpu)) == host


@pytest.mark.parametrize("length", [0, -128, 100, 64, 513 * 128])
def test_number_that_is_no_vector_length_is_refused(length: int) -> None:
    refusal = pytest.raises(ValueError, match=f"^{length} is not a multiple of 128")
    with guest("spin", features=FEATURES) as made, refusal:
        sve.write_vls(made.vcpu, [length])


def test_host_s_own_lengths_are_the_same_by_prctl_and_by_rdvl(host: list[int]) -> None:
    own = sve.own_vector_lengths()

    assert own.prctl == own.rdvl
    assert set(host) <= own.prctl
    assert int(DEFAULT_LENGTH.read_text(encoding="ascii")) * 8 in own.prctl


def test_host_without_sve_has_no_lengths_of_its_own() -> None:
    if DEFAULT_LENGTH.exists():
        pytest.skip("this host has SVE")

    assert sve.own_vector_lengths() == sve.OwnLengths(frozenset(), frozenset())


def test_asking_for_the_host_s_own_lengths_leaves_this_thread_s_alone(host: list[int]) -> None:
    libc = ctypes.CDLL(None)
    before = libc.prctl(PR_SVE_GET_VL)

    sve.own_vector_lengths()

    assert before > 0
    assert libc.prctl(PR_SVE_GET_VL) == before
