from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyvmm.errors import HostError, KvmError
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System


@pytest.mark.skipif(os.uname().machine == "aarch64", reason="this machine has the extension")
def test_open_names_the_architecture_when_it_is_another() -> None:
    with pytest.raises(HostError, match=r"needs an arm64 machine, and this one is \w+") as caught:
        System.open()

    assert "`host`=emulated" in (caught.value.hint or "")


@pytest.mark.kvm
def test_open_of_a_missing_file_has_a_hint() -> None:
    with pytest.raises(KvmError, match=r"^open\(/dev/no-kvm\): No such file.*\[ENOENT]") as caught:
        System.open("/dev/no-kvm")

    assert "enable KVM" in (caught.value.hint or "")


@pytest.mark.kvm
def test_open_refuses_a_file_that_is_not_kvm(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()

    with pytest.raises(KvmError, match="KVM_GET_API_VERSION") as caught:
        System.open(str(plain))

    assert caught.value.errno == errno.ENOTTY


@pytest.mark.kvm
def test_api_version_is_12() -> None:
    with System.open() as system:
        assert system.get_api_version() == 12


@pytest.mark.kvm
def test_check_extension_takes_every_capability() -> None:
    with System.open() as system:
        answers = {cap: system.check_extension(cap) for cap in Cap}

    assert answers[Cap.USER_MEMORY] == 1
    assert answers[Cap.MAX_VCPUS] >= 1
    assert answers[Cap.MSI_DEVID] == 0  # only a VM with an ITS has it


@pytest.mark.kvm
def test_unknown_capability_is_absent() -> None:
    with System.open() as system:
        assert not system.has(9999)


@pytest.mark.kvm
def test_vcpu_mmap_has_the_run_page_and_the_coalesced_ring() -> None:
    with System.open() as system:
        assert system.get_vcpu_mmap_size() >= 2 * os.sysconf("SC_PAGESIZE")


@pytest.mark.kvm
def test_create_vm_takes_the_hosts_largest_address_size() -> None:
    with System.open() as system:
        largest = system.check_extension(Cap.ARM_VM_IPA_SIZE)

        with system.create_vm(largest) as vm:
            assert vm.fd >= 0


@pytest.mark.kvm
@pytest.mark.parametrize("bits", [1, 31, 53])
def test_create_vm_with_impossible_address_size_names_the_limits(bits: int) -> None:
    with System.open() as system, pytest.raises(KvmError) as caught:
        system.create_vm(bits)

    assert str(caught.value) == f"KVM_CREATE_VM(ipa_bits={bits}): Invalid argument [EINVAL]"
    assert "32 to" in (caught.value.hint or "")


@pytest.mark.kvm
def test_closed_system_cannot_be_used() -> None:
    system = System.open()
    system.close()
    system.close()

    with pytest.raises(KvmError) as caught:
        system.create_vm()

    assert caught.value.errno == errno.EBADF
