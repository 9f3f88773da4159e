"""A VM's memory and interrupts."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import regs, uapi
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import DeviceType, ExitReason, VgicAddr, VgicCtrl, VgicGroup
from pyvmm.kvm.vm import ppi, spi
from tests.kvm.guest import EXITS_AT, MMIO, PAGE_SIZE, RAM_BASE, RAM_SIZE, Guest, guest, running

GICD_IGROUPR, GICD_ISENABLER, GICD_ICFGR = 0x80, 0x100, 0xC00  # Arm IHI 0069, table 12-25
GICD_CTLR = 0
GICR_SGI = 0x1_0000  # the redistributor's second frame: the same registers for private interrupts
ICC_PMR_EL1 = regs.encoding(3, 0, 4, 6, 0)
ICC_IGRPEN1_EL1 = regs.encoding(3, 0, 12, 12, 7)
ENABLE_GROUP_1 = 0b10
ARM_VM_SMCCC_CTRL = ARM_VM_SMCCC_FILTER = 0  # Source: asm/kvm.h


def test_spi_and_ppi_return_the_kernels_numbers() -> None:
    """Source: Documentation/virt/kvm/api.rst, KVM_IRQ_LINE, arm64."""
    assert spi(0) == 0x0100_0020
    assert spi(223) == 0x0100_00FF
    assert ppi(0, 11) == 0x0200_001B
    assert ppi(0x1FE, 7) == 0x12FE_0017


def dirty_pages(bitmap: bytes) -> list[int]:
    """Return the numbers of the pages whose bits are set."""
    return [page for page in range(8 * len(bitmap)) if bitmap[page // 8] >> page % 8 & 1]


@contextlib.contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def taken(fd: int) -> int:
    """Read an eventfd's count, which becomes 0."""
    return os.eventfd_read(fd) if select.select([fd], [], [], 0)[0] else 0


def enable_interrupts(made: Guest, intid: int) -> None:
    """Let the first vCPU take one interrupt, as the guest's own GIC driver would."""
    assert made.gic is not None
    mpidr, bit = 0, 1 << intid % 32
    made.gic.set_dist_reg(GICD_CTLR, ENABLE_GROUP_1)
    made.gic.set_cpu_sysreg(mpidr, ICC_PMR_EL1, 0xF0)
    made.gic.set_cpu_sysreg(mpidr, ICC_IGRPEN1_EL1, 1)
    if intid < 32:
        made.gic.set_redist_reg(mpidr, GICR_SGI + GICD_IGROUPR, bit)
        made.gic.set_redist_reg(mpidr, GICR_SGI + GICD_ISENABLER, bit)
    else:
        made.gic.set_dist_reg(GICD_IGROUPR + intid // 32 * 4, bit)
        made.gic.set_dist_reg(GICD_ISENABLER + intid // 32 * 4, bit)
    made.set(**{f"x{EXITS_AT}": MMIO})


def configure(made: Guest, intid: int, *, edge: bool) -> None:
    """Make a shared interrupt edge- or level-triggered."""
    assert made.gic is not None
    value = 0b10 << intid % 16 * 2 if edge else 0
    made.gic.set_dist_reg(GICD_ICFGR + intid // 16 * 4, value)


# Memory


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("slot", "where", "error"),
    [
        (1, RAM_BASE + RAM_SIZE - PAGE_SIZE, errno.EEXIST),
        (1, RAM_BASE + RAM_SIZE + 0x100, errno.EINVAL),
        (40_000, RAM_BASE + RAM_SIZE, errno.EINVAL),
        (1, 1 << 40, errno.EFAULT),
    ],
)
def test_invalid_memory_slot_is_refused(slot: int, where: int, error: int) -> None:
    with guest("spin") as made, pytest.raises(KvmError) as caught:
        made.vm.set_user_memory_region(
            slot, where, 2 * PAGE_SIZE, made.memory.host_address + RAM_SIZE - 2 * PAGE_SIZE
        )

    assert caught.value.errno == error
    assert f"slot={slot if slot < 10 else hex(slot)}, flags=0, guest_phys_addr={where:#x}" in str(
        caught.value
    )


@pytest.mark.kvm
def test_memory_slot_is_removed_by_size_0() -> None:
    with guest("spin") as made:
        made.vm.set_user_memory_region(0, RAM_BASE, 0, made.memory.host_address)

        made.vm.set_user_memory_region(5, RAM_BASE, RAM_SIZE, made.memory.host_address)


@pytest.mark.kvm
def test_write_to_a_read_only_slot_is_mmio() -> None:
    with guest("store_then_load") as made:
        page = RAM_BASE + RAM_SIZE
        made.memory.write(RAM_BASE + PAGE_SIZE, b"\x11\x22\x33\x44" * 8)
        made.vm.set_user_memory_region(
            1, page, PAGE_SIZE, made.memory.host_address + PAGE_SIZE, uapi.MEM_READONLY
        )
        made.set(x0=page, x1=0xABCD)

        written = made.vcpu.run()
        second = made.vcpu.run()

        assert (written.address, written.data) == (page, 0xABCD)
        assert made.x(2) == 0x4433_2211
        assert (second.address, second.data) == (page + 24, 0x2211)


@pytest.mark.kvm
def test_dirty_log_has_exactly_the_written_pages() -> None:
    with guest("store_twice_then_load", memory_flags=uapi.MEM_LOG_DIRTY_PAGES) as made:
        pages = RAM_SIZE // PAGE_SIZE
        made.set(x0=RAM_BASE + 16 * PAGE_SIZE, x2=RAM_BASE + 20 * PAGE_SIZE, x5=MMIO)

        before = made.vm.get_dirty_log(0, pages)
        made.vcpu.run()
        first = made.vm.get_dirty_log(0, pages)
        made.set(x0=RAM_BASE + 21 * PAGE_SIZE, x2=RAM_BASE + (pages - 1) * PAGE_SIZE)
        made.vcpu.run()
        second = made.vm.get_dirty_log(0, pages)

        assert len(first) == pages // 8
        assert [dirty_pages(log) for log in (before, first, second)] == [
            [],
            [16, 20],
            [21, pages - 1],
        ]


@pytest.mark.kvm
def test_dirty_log_is_refused_for_a_slot_without_one() -> None:
    with guest("spin") as made, pytest.raises(KvmError) as caught:
        made.vm.get_dirty_log(0, 512)

    assert caught.value.errno == errno.ENOENT
    assert caught.value.hint == "the slot has no KVM_MEM_LOG_DIRTY_PAGES"


@pytest.mark.kvm
def test_enable_cap_names_a_capability_that_it_refuses() -> None:
    with guest("spin") as made, pytest.raises(KvmError, match=r"cap=ARM_SVE, args=\[1]") as caught:
        made.vm.enable_cap(Cap.ARM_SVE, 1)

    assert caught.value.errno == errno.EINVAL


# eventfds


@pytest.mark.kvm
def test_ioeventfd_takes_the_matching_write_and_no_other() -> None:
    with guest("store_twice_then_load") as made, eventfd() as fd:
        made.vm.ioeventfd(fd, MMIO, 4, datamatch=7)
        made.set(x0=MMIO, x1=7, x2=MMIO, x5=MMIO + 8)

        matching = made.vcpu.run()
        count = taken(fd)
        made.set(x1=8)
        other = made.vcpu.run()

        assert (matching.address, count) == (MMIO + 8, 2)
        assert (other.address, other.is_write, other.data, taken(fd)) == (MMIO, True, 8, 0)


@pytest.mark.kvm
def test_ioeventfd_without_datamatch_takes_any_value_until_deassigned() -> None:
    with guest("store_twice_then_load") as made, eventfd() as fd:
        made.vm.ioeventfd(fd, MMIO, 4)
        made.set(x0=MMIO, x1=123, x2=MMIO, x5=MMIO + 8)

        made.vcpu.run()
        count = taken(fd)
        made.vm.ioeventfd(fd, MMIO, 4, flags=uapi.IOEVENTFD_FLAG_DEASSIGN)
        after = made.vcpu.run()

        assert (count, after.address, after.data) == (2, MMIO, 123)


@pytest.mark.kvm
def test_ioeventfd_at_the_same_address_twice_is_refused() -> None:
    with guest("spin") as made, eventfd() as first, eventfd() as second:
        made.vm.ioeventfd(first, MMIO, 4)

        with pytest.raises(KvmError, match="EEXIST"):
            made.vm.ioeventfd(second, MMIO, 4)


@pytest.mark.kvm
def test_irqfd_raises_an_edge_interrupt() -> None:
    with guest("take_interrupts", gic=True) as made, eventfd() as fd:
        enable_interrupts(made, 32 + 5)
        configure(made, 32 + 5, edge=True)
        made.vm.irqfd(fd, 5)
        os.eventfd_write(fd, 1)

        taken_ = made.vcpu.run()

        assert (taken_.address, taken_.data) == (MMIO, 37)


@pytest.mark.kvm
def test_irqfd_with_resample_signals_the_end_of_the_interrupt() -> None:
    with guest("take_interrupts", gic=True) as made, eventfd() as fd, eventfd() as resample:
        enable_interrupts(made, 32 + 6)
        configure(made, 32 + 6, edge=False)
        made.vm.irqfd(fd, 6, resample_fd=resample)
        os.eventfd_write(fd, 1)
        before = taken(resample)

        exit_ = made.vcpu.run()
        made.vcpu.kick()
        made.vcpu.run()
        after = taken(resample)

        assert (before, exit_.data) == (0, 38)
        if not after and os.uname().release.startswith("7."):
            pytest.xfail("Linux 7.2 gives the interrupt again, and never signals the eventfd")
        assert after == 1


@pytest.mark.kvm
def test_irqfd_deassigned_raises_nothing() -> None:
    with guest("take_interrupts", gic=True) as made, eventfd() as fd:
        enable_interrupts(made, 32 + 5)
        configure(made, 32 + 5, edge=True)
        made.vm.irqfd(fd, 5)
        made.vm.irqfd(fd, 5, flags=uapi.IRQFD_FLAG_DEASSIGN)
        os.eventfd_write(fd, 1)

        with running(made.vcpu) as join:
            made.vcpu.kick()
            assert join().reason == ExitReason.INTR


@pytest.mark.kvm
def test_irqfd_before_the_gic_is_refused() -> None:
    with guest("spin") as made, eventfd() as fd, pytest.raises(KvmError) as caught:
        made.vm.irqfd(fd, 0)

    assert (caught.value.errno, caught.value.hint) == (errno.EAGAIN, "create the GIC first")


# Lines and messages


@pytest.mark.kvm
def test_irq_line_raises_a_shared_interrupt() -> None:
    with guest("take_interrupts", gic=True) as made:
        enable_interrupts(made, 32 + 3)

        made.vm.irq_line(spi(3), True)

        assert made.vcpu.run().data == 35


@pytest.mark.kvm
def test_irq_line_raises_a_private_interrupt() -> None:
    with guest("take_interrupts", gic=True) as made:
        enable_interrupts(made, 16 + 8)

        made.vm.irq_line(ppi(0, 8), True)

        assert made.vcpu.run().data == 24


@pytest.mark.kvm
def test_irq_line_level_can_be_read_and_lowered() -> None:
    with guest("spin", gic=True) as made:
        assert made.gic is not None
        configure(made, 32 + 3, edge=False)

        levels = []
        for level in (True, False):
            made.vm.irq_line(spi(3), level)
            levels.append(made.gic.get_line_level(0, 32))

        assert levels == [1 << 3, 0]


@pytest.mark.kvm
def test_irq_line_before_the_gic_is_refused() -> None:
    with guest("spin") as made, pytest.raises(KvmError) as caught:
        made.vm.irq_line(spi(0), True)

    assert str(caught.value).startswith("KVM_IRQ_LINE(irq=0x1000020, level=1): ")
    assert caught.value.errno == errno.ENXIO


@pytest.mark.kvm
def test_irq_line_beyond_the_gics_interrupts_is_refused() -> None:
    with guest("spin", gic=True) as made, pytest.raises(KvmError) as caught:
        made.vm.irq_line(spi(32), True)

    assert caught.value.errno == errno.EINVAL


@pytest.mark.kvm
def test_signal_msi_without_an_its_is_refused() -> None:
    with guest("spin", gic=True) as made, pytest.raises(KvmError, match="KVM_SIGNAL_MSI") as caught:
        made.vm.signal_msi(0x800_0040, 1, devid=0)

    assert (caught.value.errno, caught.value.hint) == (errno.ENODEV, "the VM has no ITS")


@pytest.mark.kvm
def test_signal_msi_with_an_its_needs_it_enabled() -> None:
    with guest("spin", gic=True) as made, made.vm.create_device(DeviceType.ARM_VGIC_ITS) as its:
        its.set_attr(VgicGroup.ADDR, VgicAddr.ITS_ADDR_TYPE, 0x800_0000)
        its.set_attr(VgicGroup.CTRL, VgicCtrl.VGIC_CTRL_INIT)

        with pytest.raises(KvmError) as caught:
            made.vm.signal_msi(0x801_0040, 1, devid=0)

        assert caught.value.errno == errno.EBUSY
        assert made.vm.has(Cap.MSI_DEVID)


# Attributes and statistics


@pytest.mark.kvm
def test_vm_has_attributes_exactly_with_the_counter_offset() -> None:
    with guest("spin") as made:
        has_filter = made.vm.has_attr(ARM_VM_SMCCC_CTRL, ARM_VM_SMCCC_FILTER)

        assert has_filter == made.vm.has(Cap.COUNTER_OFFSET)  # both in Linux 6.4


@pytest.mark.kvm
def test_stats_can_be_opened() -> None:
    with guest("spin") as made:
        if not made.vm.has(Cap.BINARY_STATS_FD):
            pytest.skip("this kernel has no binary statistics")
        for fd in (made.vm.get_stats_fd(), made.vcpu.get_stats_fd()):
            assert len(os.pread(fd, 24, 0)) == 24  # struct kvm_stats_header
            os.close(fd)


@pytest.mark.kvm
def test_vm_ends_when_its_descriptors_are_closed() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(3):
        with guest("spin", gic=True, vcpus=3):
            pass

    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.kvm
def test_create_vcpu_twice_is_refused() -> None:
    refusal = pytest.raises(KvmError, match=r"KVM_CREATE_VCPU\(id=0\).*EEXIST")
    with System.open() as system, system.create_vm() as vm, vm.create_vcpu(0), refusal:
        vm.create_vcpu(0)
