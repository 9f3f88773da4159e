"""lkvm's arm64 options on a real KVM: what each changes of the machine."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvmm import layout
from pyvmm.config import Config, CpuRequest
from pyvmm.errors import HostError, UsageError
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import DeviceType
from pyvmm.layout import GIB, MIB
from pyvmm.machine.machine import Machine
from pyvmm.machine.plan import Feature
from tests import programs

pytestmark = pytest.mark.kvm

PV_TIME_ST = 0xC500_0021  # returns the address of stolen time.  Source: Arm DEN 0057A, 3.2.2
NOT_SUPPORTED = (1 << 64) - 1
PMCR_EL0 = regs.sysreg(3, 3, 9, 12, 0)
ID_AA64PFR1_EL1 = regs.sysreg(3, 0, 0, 4, 1)
MTE_FIELD = 0xF << 8

# mov r0, #42; movw r1, #0; movt r1, #0x103; str r0, [r1]; b .
STORE_32 = b"".join(
    word.to_bytes(4, "little")
    for word in (0xE3A0_002A, 0xE300_1000, 0xE340_1103, 0xE581_0000, 0xEAFF_FFFE)
)

Boot = Callable[..., Machine]


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Make a machine that writes 0 to the exit register, or runs another program."""
    with ExitStack() as stack:

        def make(program: str = "store", **options: Any) -> Machine:
            image = options.pop("image", None) or programs.write(program, tmp_path)
            shape = {"vcpus": 1, "memory": 16 * MIB, "timeout_s": 120.0} | options
            machine = Machine(Config(image=image, **shape), lambda data: None)
            stack.enter_context(machine)
            machine.vcpus[0].set_one_reg(regs.X(2), layout.EXIT.base)
            return machine

        yield make


def has(cap: int) -> bool:
    with System.open() as system:
        return system.has(cap)


def called(machine: Machine, function: int) -> int:
    """Return the result of an SMCCC call of the guest."""
    vcpu = machine.vcpus[0]
    vcpu.set_one_reg(regs.X(0), function)
    machine.start()
    deadline = time.monotonic() + 120
    while True:
        machine.pause()
        result = vcpu.get_one_reg(regs.X(0))
        if result != function:
            return result
        assert time.monotonic() < deadline
        machine.resume()
        time.sleep(0.01)


def has_device(type_: DeviceType) -> bool:
    with System.open() as system, system.create_vm() as vm:
        return vm.has_device(type_)


@pytest.mark.parametrize("irqchip", ["gicv3", "gicv3-its", None])
def test_guest_gets_the_irqchip_that_was_asked_for(boot: Boot, irqchip: str | None) -> None:
    if irqchip is not None and not has_device(DeviceType.ARM_VGIC_V3):
        pytest.skip("the host has no GICv3")

    machine = boot(irqchip=irqchip, vcpus=3)

    v3 = "gicv3-its" if has_device(DeviceType.ARM_VGIC_ITS) else "gicv3"
    made = irqchip or (v3 if has_device(DeviceType.ARM_VGIC_V3) else "gicv2")
    assert machine.board.irqchip.name == made
    assert machine.board.vm.has(Cap.MSI_DEVID) == (made == "gicv3-its")
    assert (b"arm,gic-v3-its\0" in machine.dtb) == (made == "gicv3-its")
    assert machine.run() == 0


def test_gicv2_works_or_is_refused_with_the_choices(boot: Boot) -> None:
    if not has_device(DeviceType.ARM_VGIC_V2):
        with pytest.raises(HostError, match="Failed to create virtual GIC") as caught:
            boot(irqchip="gicv2", vcpus=2)
        assert caught.value.hint == "use one of gicv3, gicv3-its"
        return

    machine = boot(irqchip="gicv2", vcpus=2)

    assert b"arm,cortex-a15-gic\0" in machine.dtb
    assert machine.run() == 0


def test_host_with_a_gicv2_alone_refuses_a_gicv3_and_a_ninth_vcpu(boot: Boot) -> None:
    if has_device(DeviceType.ARM_VGIC_V3):
        pytest.skip("the host has a GICv3")

    with pytest.raises(HostError, match=r"`irqchip`=gicv3-its: .* has no gicv3-its") as caught:
        boot(irqchip="gicv3-its")
    assert caught.value.hint == "use one of gicv2"
    with pytest.raises(HostError, match="`vcpus`=9: this host gives one VM at most 8 vCPUs"):
        boot(vcpus=9)
    assert boot(vcpus=8).run() == 0


def test_gicv2_has_at_most_8_vcpus(boot: Boot) -> None:
    with pytest.raises(HostError, match="at most 8 vCPUs with a GICv2"):
        boot(irqchip="gicv2", vcpus=9)


def test_guest_gets_a_pmu_on_request(boot: Boot) -> None:
    if not has(Cap.ARM_PMU_V3):
        pytest.skip("the host has no PMU")

    machine = boot(cpu=CpuRequest(pmu=True), vcpus=2)

    assert all(PMCR_EL0 in vcpu.get_reg_list() for vcpu in machine.vcpus)
    assert b"arm,armv8-pmuv3\0" in machine.dtb
    assert machine.run() == 0


def test_stolen_time_is_at_the_same_address_as_in_lkvm(boot: Boot) -> None:
    if not has(Cap.STEAL_TIME):
        pytest.skip("the host has no stolen time")

    machine = boot("call")

    assert called(machine, PV_TIME_ST) == layout.PVTIME.base
    assert machine.board.pvtime is not None
    revision_and_attributes = machine.board.pvtime.read(layout.PVTIME.base, 8)
    assert revision_and_attributes == bytes(8)


def test_pvtime_false_hides_stolen_time(boot: Boot) -> None:
    machine = boot("call", cpu=CpuRequest(pvtime=False))

    assert machine.board.pvtime is None
    assert called(machine, PV_TIME_ST) == NOT_SUPPORTED


@pytest.mark.parametrize("mte", [True, False])
def test_guest_gets_mte_where_the_host_has_it_unless_disabled(boot: Boot, mte: bool) -> None:
    machine = boot(cpu=CpuRequest(mte=mte))

    seen = machine.vcpus[0].get_one_reg(ID_AA64PFR1_EL1) & MTE_FIELD

    assert (seen > 0) == (mte and has(Cap.ARM_MTE))
    assert (Feature.MTE in machine.plan.features) == (seen > 0)
    assert machine.run() == 0


@pytest.mark.parametrize("e2h0", [True, False])
def test_nested_guest_starts_in_el2_or_is_refused(boot: Boot, e2h0: bool) -> None:
    asked = CpuRequest(nested=True, e2h0=e2h0)
    if not has(Cap.ARM_EL2_E2H0 if e2h0 else Cap.ARM_EL2):
        with pytest.raises(HostError, match="gives guests no EL2"):
            boot(cpu=asked)
        return

    machine = boot(cpu=asked)

    assert machine.vcpus[0].get_one_reg(regs.PSTATE) & 0xF == 0b1001
    assert machine.run() == 0


def test_32_bit_guest_runs(boot: Boot, tmp_path: Path) -> None:
    image = tmp_path / "arm32"
    image.write_bytes(STORE_32)
    if not has(Cap.ARM_EL1_32BIT):
        words = r"`cpu\.aarch32`: this host's KVM gives guests no 32-bit"
        with pytest.raises(HostError, match=words):
            boot(image=image, cpu=CpuRequest(aarch32=True))
        return

    machine = boot(image=image, cpu=CpuRequest(aarch32=True))
    machine.vcpus[0].set_one_reg(regs.X(2), machine.image.dtb)

    assert machine.image.entry == layout.RAM_BASE + 0x8000
    assert machine.vls == frozenset()
    assert machine.run() == 42


@pytest.mark.parametrize("base", [layout.RAM_BASE, 3 * GIB, 4 * GIB, 0x12_3440_0000])
def test_ram_starts_at_the_address_that_was_asked_for(boot: Boot, base: int) -> None:
    machine = boot(ram_base=base)

    assert machine.image.entry == base + layout.KERNEL_OFFSET
    assert machine.run() == 0


def test_vcpus_run_only_on_their_affinity_s_cpus(boot: Boot) -> None:
    machine = boot("spin", vcpus=2, vcpu_affinity=frozenset({0}))
    machine.start()
    deadline = time.monotonic() + 120

    while (cpus := affinities()) != [{0}, {0}] and time.monotonic() < deadline:
        time.sleep(0.01)

    assert cpus == [{0}, {0}]


def affinities() -> list[set[int]]:
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("vcpu")]
    return [os.sched_getaffinity(thread.native_id or -1) for thread in threads]


def test_affinity_with_missing_cpus_is_refused(boot: Boot) -> None:
    with pytest.raises(HostError, match="`vcpu_affinity`=0,4095: this host has no CPU 4095"):
        boot(vcpu_affinity=frozenset({0, 4095}))


HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


@pytest.fixture
def hugetlbfs(tmp_path: Path) -> Iterator[Path]:
    """Mount a hugetlbfs with 20 pages of 2 MiB."""
    if os.geteuid() != 0 or not HUGE_PAGES.exists():
        pytest.skip("mounting a hugetlbfs takes root, and a kernel with 2 MiB pages")
    before = HUGE_PAGES.read_text()
    directory = tmp_path / "huge"
    directory.mkdir()
    mount = ["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", str(directory)]
    if subprocess.run(mount).returncode:
        pytest.skip("mount refused")
    HUGE_PAGES.write_text("20")
    yield directory
    HUGE_PAGES.write_text(before)
    subprocess.run(["umount", str(directory)], check=True)


def free_pages() -> int:
    return int(HUGE_PAGES.with_name("free_hugepages").read_text())


def test_ram_comes_from_hugetlbfs(boot: Boot, hugetlbfs: Path) -> None:
    if free_pages() < 20:
        pytest.skip("the host's memory is too fragmented for 20 huge pages")
    machine = boot(hugetlbfs=hugetlbfs)

    assert free_pages() < 20
    assert Feature.MTE not in machine.plan.features
    assert machine.run() == 0
    machine.close()
    assert free_pages() == 20


def test_more_ram_than_huge_pages_is_refused_with_the_numbers(boot: Boot, hugetlbfs: Path) -> None:
    with pytest.raises(HostError, match=r"cannot map 64 pages of 2 MiB") as caught:
        boot(hugetlbfs=hugetlbfs, memory=128 * MIB)

    assert "pages are free" in (caught.value.hint or "")


def test_ram_that_is_no_multiple_of_huge_pages_is_refused(boot: Boot, hugetlbfs: Path) -> None:
    with pytest.raises(UsageError, match="17 MiB is not a whole number of the 2 MiB pages"):
        boot(hugetlbfs=hugetlbfs, memory=17 * MIB)
