from __future__ import annotations

import errno

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import DeviceType, VgicAddr, VgicGroup
from pyvmm.kvm.vgic import Vgic, affinity
from tests.kvm.guest import DISTRIBUTOR, REDISTRIBUTORS, Gic, guest

GICD_TYPER, GICD_IIDR = 0x4, 0x8  # Arm IHI 0069, 12.9
GICR_TYPER_HIGH, GICR_WAKER = 0xC, 0x14
LAST = (7, 15, 15, 7)  # an unused encoding


def test_affinity_packs_the_four_levels() -> None:
    assert affinity(0x80_8001_0203) == 0x8001_0203_0000_0000


@pytest.mark.kvm
def test_gic_has_the_requested_interrupts_and_redistributors() -> None:
    with guest("spin", gic=True, vcpus=3) as made:
        assert made.gic is not None
        mpidrs = [vcpu.get_one_reg(regs.sysreg(3, 0, 0, 0, 5)) for vcpu in made.vcpus]

        it_lines = made.gic.get_dist_reg(GICD_TYPER) & 0x1F
        affinities = [made.gic.get_redist_reg(mpidr, GICR_TYPER_HIGH) for mpidr in mpidrs]

        assert (it_lines + 1) * 32 == 64
        assert affinities == [0, 1, 2]


@pytest.mark.kvm
def test_registers_can_be_written_and_read_back() -> None:
    with guest("spin", gic=True) as made:
        assert made.gic is not None
        pmr = regs.encoding(3, 0, 4, 6, 0)

        made.gic.set_dist_reg(0x104, 0x1234)
        made.gic.set_cpu_sysreg(0, pmr, 0xF0)
        made.gic.set_redist_reg(0, GICR_WAKER, 0)
        made.gic.set_dist_reg(0xC08, 0)  # level-triggered: only such a line has a level
        made.gic.set_line_level(0, 32, 0xF0F0)

        assert made.gic.get_dist_reg(0x104) == 0x1234
        assert made.gic.get_cpu_sysreg(0, pmr) == 0xF0
        assert made.gic.get_redist_reg(0, GICR_WAKER) == 0
        assert made.gic.get_line_level(0, 32) == 0xF0F0


@pytest.mark.kvm
def test_attrs_match_single_reads_and_writes() -> None:
    group = VgicGroup.CPU_SYSREGS
    pmr, bpr0, nothing = (regs.encoding(3, *rest) for rest in ((0, 4, 6, 0), (0, 12, 8, 3), LAST))
    with guest("spin", gic=True) as made:
        assert made.gic is not None
        device = made.gic.device

        device.set_attrs(group, {pmr: 0xF0, bpr0: 3})
        found = device.get_attrs(group, [pmr, nothing, bpr0])

        assert (found[pmr], found[bpr0]) == (0xF0, 3)
        assert isinstance(found[nothing], KvmError)
        with pytest.raises(KvmError, match=rf"attr={nothing:#x}, value=1\)") as caught:
            device.set_attrs(group, {pmr: 0x80, nothing: 1, bpr0: 4})
        assert caught.value.errno in (errno.ENOENT, errno.ENXIO)  # older kernels, newer ones
        assert device.get_attrs(group, [bpr0, pmr]) == {bpr0: 3, pmr: 0x80}


@pytest.mark.kvm
def test_registers_before_init_are_refused() -> None:
    with guest("spin") as made:
        gic = Gic(made.vm)
        gic.device.set_attr(VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_DIST, DISTRIBUTOR)
        gic.device.set_attr(VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_REDIST, REDISTRIBUTORS)

        with pytest.raises(KvmError) as caught:
            gic.get_dist_reg(0)

        assert caught.value.errno == errno.EBUSY
        gic.close()


@pytest.mark.kvm
def test_registers_of_an_unknown_vcpu_are_refused() -> None:
    with guest("spin", gic=True) as made, pytest.raises(KvmError, match="EINVAL"):
        assert made.gic is not None
        made.gic.get_redist_reg(9, GICR_WAKER)


@pytest.mark.kvm
def test_second_gic_is_refused() -> None:
    with guest("spin", gic=True) as made, pytest.raises(KvmError) as caught:
        Vgic(made.vm)

    assert caught.value.hint == "the VM has an interrupt controller already"


@pytest.mark.kvm
def test_run_has_a_hint_when_the_gic_has_no_address() -> None:
    with guest("spin") as made:
        gic = Vgic(made.vm)

        with pytest.raises(KvmError, match="KVM_RUN") as caught:
            made.vcpu.run()

        assert caught.value.errno in (errno.ENOENT, errno.ENXIO)  # older kernels, newer ones
        assert caught.value.hint == "the GIC has no addresses, or was not initialised"
        gic.close()


@pytest.mark.kvm
@pytest.mark.parametrize(("where", "error"), [(0x1234, errno.EINVAL), (1 << 48, errno.E2BIG)])
def test_distributor_at_an_invalid_address_is_refused(where: int, error: int) -> None:
    with (
        guest("spin") as made,
        made.vm.create_device(DeviceType.ARM_VGIC_V3) as gic,
        pytest.raises(KvmError, match=f"value={where:#x}") as caught,
    ):
        gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_DIST, where)

    assert caught.value.errno == error


@pytest.mark.kvm
def test_address_can_be_read_back_and_set_only_once() -> None:
    with guest("spin", gic=True) as made:
        assert made.gic is not None
        device = made.gic.device

        assert device.get_attr(VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_DIST) == DISTRIBUTOR
        with pytest.raises(KvmError, match="EEXIST"):
            device.set_attr(VgicGroup.ADDR, VgicAddr.V3_ADDR_TYPE_DIST, DISTRIBUTOR)
        assert device.has_attr(VgicGroup.CTRL, 0)
        assert not device.has_attr(77, 0)


@pytest.mark.kvm
@pytest.mark.parametrize("nr_irqs", [32, 65, 1056])
def test_number_of_interrupts_out_of_range_is_refused(nr_irqs: int) -> None:
    with guest("spin") as made, pytest.raises(KvmError, match="KVM_SET_DEVICE_ATTR") as caught:
        Vgic.create(
            made.vm, distributor=DISTRIBUTOR, redistributors=REDISTRIBUTORS, nr_irqs=nr_irqs
        )

    assert caught.value.errno == errno.EINVAL
