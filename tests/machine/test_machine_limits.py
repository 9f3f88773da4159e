"""The vCPUs and the memory of a machine, and the limits of its host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.config import Config
from pyvmm.control.service import resident
from pyvmm.errors import HostError, ImageError
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from tests.machine.conftest import Boot

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("vcpus", [1, 2, 3, 8, 17])
def test_every_vcpu_exists_and_only_the_first_is_on(boot: Boot, vcpus: int) -> None:
    machine = boot("store", x2=layout.EXIT.base, vcpus=vcpus)

    states = [vcpu.get_mp_state() for vcpu in machine.vcpus]

    assert states == [0] + [5] * (vcpus - 1)
    assert machine.dtb.count(b"arm,arm-v8\0") == vcpus
    assert machine.run() == 0


def test_maximum_of_vcpus_works_and_one_more_is_refused(boot: Boot) -> None:
    with System.open() as system:
        most = min(system.check_extension(Cap.MAX_VCPUS), 64)  # all 512 take long
        limit = system.check_extension(Cap.MAX_VCPUS)

    assert boot("store", x2=layout.EXIT.base, vcpus=most).run() == 0
    with pytest.raises(HostError, match=f"at most {limit} vCPUs"):
        boot("store", vcpus=limit + 1)


@pytest.mark.parametrize("mib", [4, 64, 255, 1024])
def test_memory_has_the_requested_size(boot: Boot, mib: int) -> None:
    machine = boot("store", x2=layout.EXIT.base, memory=mib * MIB)

    assert machine.memory.size == mib * MIB
    assert machine.run() == 0


def test_memory_beyond_the_address_limit_is_refused(boot: Boot) -> None:
    with System.open() as system:
        bits = system.check_extension(Cap.ARM_VM_IPA_SIZE)

    with pytest.raises(HostError, match=f"this host has {bits}"):
        boot("store", memory=1 << bits)


def test_memory_beyond_the_hosts_takes_only_what_the_guest_uses(boot: Boot) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    machine = boot("store", x2=layout.EXIT.base, memory=8 * physical // MIB * MIB)

    assert machine.run() == 0
    assert resident((machine.memory.host_address, machine.memory.size)) < 16 * MIB


def test_memory_beyond_a_strict_commit_limit_is_refused(boot: Boot) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    policy = Path("/proc/sys/vm/overcommit_memory")
    if not os.access(policy, os.W_OK):
        pytest.skip("only root may set vm.overcommit_memory")
    before = policy.read_text(encoding="ascii")

    policy.write_text("2", encoding="ascii")
    try:
        with pytest.raises(HostError, match=r"cannot map .*: Cannot allocate memory") as caught:
            boot("store", memory=4 * physical // MIB * MIB)
    finally:
        policy.write_text(before, encoding="ascii")

    hint = caught.value.hint or ""
    assert "for all processes to ask for" in hint
    assert hint.endswith("(vm.overcommit_memory=2); use a smaller `memory`")


def test_host_limit_is_reported_before_a_missing_image(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"

    with pytest.raises(HostError, match="vCPUs"):
        Machine(Config(image=nothing, vcpus=100_000))
    with pytest.raises(ImageError, match="nothing"):
        Machine(Config(image=nothing, vcpus=1, memory=16 * MIB))


def test_refused_machine_leaves_nothing_open(boot: Boot) -> None:
    boot("store").close()  # opens what stays open
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names

    for options in ({"vcpus": 100_000}, {"memory": 1 << 60}, {"initrd": Path("/nonexistent")}):
        with pytest.raises((HostError, ImageError)):
            boot("store", **options)

    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - names
