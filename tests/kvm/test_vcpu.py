"""A vCPU's initialisation, its errnos and its registers; test_run.py runs it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import DeviceType, MpState, PmuAttr, PvtimeAttr, VcpuFeature, VcpuGroup
from pyvmm.kvm.vcpu import Vcpu, VcpuEvents
from tests.kvm.guest import RAM_BASE, guest

pytestmark = pytest.mark.kvm

PSCI, SVE = VcpuFeature.PSCI_0_2, VcpuFeature.SVE
ZCR_EL1 = regs.sysreg(3, 0, 1, 2, 0)
MPIDR_EL1 = regs.sysreg(3, 0, 0, 0, 5)
ID_AA64PFR0_EL1 = regs.sysreg(3, 0, 0, 4, 0)
IRQ_VTIMER, IRQ_PTIMER = 0, 1  # attributes of VcpuGroup.TIMER_CTRL.  Source: asm/kvm.h
NO_SYSREG = regs.sysreg(3, 7, 15, 15, 7)


def refusal(call: Callable[[], object]) -> int:
    """Return the errno of the KvmError that ``call`` raises."""
    with pytest.raises(KvmError) as caught:
        call()
    return caught.value.errno


@pytest.fixture
def bare() -> object:
    """Return a vCPU that was only created."""
    with System.open() as system, system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        yield vcpu


def test_vcpu_refuses_everything_but_init_before_init(bare: Vcpu) -> None:
    refused = [
        refusal(lambda: bare.get_one_reg(regs.PC)),
        refusal(lambda: bare.set_one_reg(regs.PC, 0)),
        refusal(bare.get_reg_list),
        refusal(bare.run),
        refusal(lambda: bare.finalize(SVE)),
    ]

    assert refused == [errno.ENOEXEC] * 5


def test_run_before_init_has_a_hint(bare: Vcpu) -> None:
    with pytest.raises(KvmError) as caught:
        bare.run()

    assert str(caught.value) == "KVM_RUN(vcpu 0): Exec format error [ENOEXEC]"
    assert caught.value.hint == "initialise the vCPU first (KVM_ARM_VCPU_INIT)"


def test_init_with_unknown_target_is_refused(bare: Vcpu) -> None:
    assert refusal(lambda: bare.init(77, [PSCI])) == errno.EINVAL


def test_init_with_unknown_feature_names_it(bare: Vcpu) -> None:
    with pytest.raises(KvmError, match=r"vcpu 0, target=5, features=\[PSCI_0_2 200]") as caught:
        bare.init(5, [PSCI, 200])

    assert caught.value.errno == errno.ENOENT


def test_sve_registers_appear_with_finalize() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        vcpu = made.vcpu

        before = [
            refusal(vcpu.run),
            refusal(vcpu.get_reg_list),
            refusal(lambda: vcpu.get_one_reg(regs.Z(0))),
            refusal(lambda: vcpu.set_one_reg(regs.P(0), 1)),
            refusal(lambda: vcpu.get_one_reg(regs.FFR())),
        ]
        vcpu.finalize(SVE)

        assert before == [errno.EPERM] * 5
        assert vcpu.get_one_reg(regs.Z(0)) == 0
        assert regs.FFR() in vcpu.get_reg_list()


def test_core_registers_need_no_finalize() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.set_one_reg(regs.X(5), 0x1234)

        assert made.vcpu.get_one_reg(regs.X(5)) == 0x1234
        assert made.vcpu.get_one_reg(ZCR_EL1) is not None
        assert made.vcpu.get_mp_state() == MpState.RUNNABLE


def test_finalize_is_refused_the_second_time() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.finalize(SVE)

        with pytest.raises(KvmError, match=r"FINALIZE\(vcpu 0, SVE\).*EPERM"):
            made.vcpu.finalize(SVE)
        assert refusal(lambda: made.vcpu.set_one_reg(regs.SVE_VLS, 1)) == errno.EPERM


def test_finalize_of_a_feature_not_chosen_is_refused() -> None:
    with guest("spin") as made:
        assert refusal(lambda: made.vcpu.finalize(SVE)) == errno.EINVAL
        assert refusal(lambda: made.vcpu.finalize(PSCI)) == errno.EINVAL


def test_vcpu_without_sve_has_no_sve_registers() -> None:
    with guest("spin") as made:
        refused = [
            refusal(partial(made.vcpu.get_one_reg, reg))
            for reg in (regs.SVE_VLS, regs.Z(0), regs.P(0), regs.FFR(), ZCR_EL1)
        ]

        assert refused == [errno.ENOENT] * 5


def test_slices_beyond_the_first_do_not_exist() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.finalize(SVE)

        assert refusal(lambda: made.vcpu.get_one_reg(regs.Z(0, 1))) == errno.ENOENT
        assert refusal(lambda: made.vcpu.get_one_reg(regs.P(0, 31))) == errno.ENOENT


def test_z_registers_replace_v_registers_with_sve() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.finalize(SVE)

        assert refusal(lambda: made.vcpu.get_one_reg(regs.V(3))) == errno.EINVAL


@pytest.mark.parametrize(
    "reg_id",
    [
        regs.Z(0) ^ regs.U2048 | regs.U1024,
        regs.P(0) ^ regs.U256 | regs.U128,
        regs.SVE_VLS ^ regs.U512 | regs.U64,
        regs.X(0) ^ regs.U64 | regs.U32,
        regs.ARM64 | regs.U8 | regs.CORE,
        regs.ARM64 | regs.U16 | regs.CORE,
    ],
)
def test_register_of_another_size_is_refused(reg_id: int) -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.finalize(SVE)

        assert refusal(lambda: made.vcpu.get_one_reg(reg_id)) in (errno.EINVAL, errno.ENOENT)


def test_init_again_resets_but_keeps_the_finalized_lengths() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.set_one_reg(regs.SVE_VLS, 1)
        made.vcpu.finalize(SVE)
        made.vcpu.set_one_reg(regs.Z(7), 99)

        made.vcpu.init(made.vm.preferred_target(), (PSCI, SVE))

        assert made.vcpu.get_one_reg(regs.Z(7)) == 0
        assert made.vcpu.get_one_reg(regs.SVE_VLS) == 1
        assert refusal(lambda: made.vcpu.finalize(SVE)) == errno.EPERM


def test_init_again_before_finalize_forgets_the_chosen_lengths() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        host = made.vcpu.get_one_reg(regs.SVE_VLS)
        made.vcpu.set_one_reg(regs.SVE_VLS, 1)

        made.vcpu.init(made.vm.preferred_target(), (PSCI, SVE))

        assert made.vcpu.get_one_reg(regs.SVE_VLS) == host


def test_init_again_with_other_features_is_refused() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        target = made.vm.preferred_target()

        assert refusal(lambda: made.vcpu.init(target, (PSCI,))) == errno.EINVAL


@pytest.mark.parametrize(
    ("reg_id", "bits"),
    [
        (regs.FPSR, 32),  # KVM keeps all bits
        (regs.X(30), 64),
        (regs.V(31), 128),
    ],
)
def test_one_reg_keeps_every_bit(reg_id: int, bits: int) -> None:
    value = int.from_bytes(bytes(range(1, bits // 8 + 1)), "little")
    with guest("spin") as made:
        made.vcpu.set_one_reg(reg_id, value)

        assert regs.size(reg_id) * 8 == bits
        assert made.vcpu.get_one_reg(reg_id) == value


@pytest.mark.parametrize(("reg_id", "per_bit"), [(regs.Z(31), 1), (regs.P(15), 8), (regs.FFR(), 8)])
def test_one_reg_of_sve_keeps_the_bits_of_the_vector_length(reg_id: int, per_bit: int) -> None:
    value = int.from_bytes(bytes(n % 251 + 1 for n in range(regs.size(reg_id))), "little")
    with guest("spin", features=(PSCI, SVE)) as made:
        longest = made.vcpu.get_one_reg(regs.SVE_VLS).bit_length() * 128
        made.vcpu.finalize(SVE)

        made.vcpu.set_one_reg(reg_id, value)

        assert made.vcpu.get_one_reg(reg_id) == value & (1 << longest // per_bit) - 1


def test_set_one_reg_refuses_a_value_too_wide() -> None:
    with guest("spin") as made:
        with pytest.raises(OverflowError):
            made.vcpu.set_one_reg(regs.X(0), 1 << 64)
        with pytest.raises(OverflowError):
            made.vcpu.set_one_reg(regs.X(0), -1)


def test_one_reg_error_names_vcpu_register_and_value() -> None:
    with guest("spin", features=(PSCI, SVE)) as made, pytest.raises(KvmError) as caught:
        made.vcpu.set_one_reg(regs.SVE_VLS, 0)

    assert str(caught.value).startswith("KVM_SET_ONE_REG(vcpu 0, SVE_VLS, 0x0): Invalid argument")


def test_reg_list_has_each_register_once_and_each_can_be_read() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.finalize(SVE)

        listed = made.vcpu.get_reg_list()

        assert len(listed) == len(set(listed)) > 200
        assert {regs.PC, regs.SVE_VLS, regs.Z(31), regs.TIMER_CNT, MPIDR_EL1} <= set(listed)
        assert all(made.vcpu.get_one_reg(reg_id) >= 0 for reg_id in listed)


def test_registers_of_the_list_can_be_written_back() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.finalize(SVE)
        state = {reg_id: made.vcpu.get_one_reg(reg_id) for reg_id in made.vcpu.get_reg_list()}

        refused = {}
        for reg_id, value in state.items():
            try:
                made.vcpu.set_one_reg(reg_id, value)
            except KvmError as error:
                refused[regs.name(reg_id)] = error.errno

        assert refused == {"SVE_VLS": errno.EPERM}


def test_get_regs_matches_single_reads_and_returns_errors() -> None:
    ticking = {regs.TIMER_CNT, regs.PTIMER_CNT}
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.finalize(SVE)
        made.vcpu.set_one_reg(regs.Z(7), 7 << 500)
        listed = [reg_id for reg_id in made.vcpu.get_reg_list() if reg_id not in ticking]
        asked = [regs.Z(0, 5), *listed[:100], regs.P(0, 5), *listed[100:], NO_SYSREG]

        found = made.vcpu.get_regs(asked)

        assert list(found) == asked
        assert [found[reg_id] for reg_id in listed] == [*map(made.vcpu.get_one_reg, listed)]
        for reg_id in (regs.Z(0, 5), regs.P(0, 5), NO_SYSREG):
            with pytest.raises(KvmError) as caught:
                made.vcpu.get_one_reg(reg_id)
            assert str(found[reg_id]) == str(caught.value)
            assert isinstance(found[reg_id], KvmError)


def test_set_regs_matches_single_writes_and_returns_errors() -> None:
    values = {
        regs.X(0): 1, NO_SYSREG: 2, regs.Z(1): 3 << 600, regs.FPSR: 4, regs.SVE_VLS: 5, regs.X(9): 6
    }  # fmt: skip
    refused = {NO_SYSREG: errno.ENOENT, regs.SVE_VLS: errno.EPERM}
    with guest("spin", features=(PSCI, SVE)) as made:
        made.vcpu.finalize(SVE)

        errors = made.vcpu.set_regs(values)

        assert {reg_id: error.errno for reg_id, error in errors.items()} == refused
        assert "vcpu 0, SVE_VLS, 0x5" in str(errors[regs.SVE_VLS])
        for reg_id in values.keys() - refused:
            assert made.vcpu.get_one_reg(reg_id) == values[reg_id]
        with pytest.raises(OverflowError):
            made.vcpu.set_regs({regs.X(1): 1, regs.FPSR: 1 << 32})
        assert made.vcpu.get_one_reg(regs.X(1)) == 0


def test_mpidr_has_16_vcpus_a_cluster() -> None:
    from tests.arm64.psci import mpidr

    with guest("spin", vcpus=18) as made:
        seen = [vcpu.get_one_reg(MPIDR_EL1) for vcpu in made.vcpus]

    assert seen == [mpidr(number) for number in range(18)]


def test_pstate_at_reset_equals_the_one_of_arm64_pstate() -> None:
    from pyvmm.arm64.pstate import PSTATE_AT_RESET

    with guest("spin") as made:
        assert made.vcpu.get_one_reg(regs.PSTATE) == PSTATE_AT_RESET


def test_mp_state_of_a_secondary_is_stopped_until_set() -> None:
    with guest("spin", vcpus=2) as made:
        assert [vcpu.get_mp_state() for vcpu in made.vcpus] == [MpState.RUNNABLE, MpState.STOPPED]

        made.vcpus[1].set_mp_state(MpState.RUNNABLE)

        assert made.vcpus[1].get_mp_state() == MpState.RUNNABLE


def test_set_mp_state_refuses_a_state_of_another_architecture() -> None:
    with guest("spin") as made:
        assert refusal(lambda: made.vcpu.set_mp_state(3)) == errno.EINVAL


def test_vcpu_events_keep_a_pending_serror() -> None:
    with guest("spin") as made:
        none = made.vcpu.get_vcpu_events()
        has_esr = made.system.has(Cap.ARM_INJECT_SERROR_ESR)
        pending = VcpuEvents(True, has_esr, 0x123 if has_esr else 0)

        made.vcpu.set_vcpu_events(pending)

        assert none == VcpuEvents(serror_has_esr=has_esr)
        assert made.vcpu.get_vcpu_events() == pending


def test_attributes_of_timer_pmu_and_pvtime() -> None:
    features = (PSCI, VcpuFeature.PMU_V3)
    with guest("spin", features=features, gic=True) as made:
        vcpu = made.vcpu

        assert vcpu.get_attr(VcpuGroup.TIMER_CTRL, IRQ_VTIMER) == 27
        vcpu.set_attr(VcpuGroup.TIMER_CTRL, IRQ_VTIMER, 28)
        assert vcpu.get_attr(VcpuGroup.TIMER_CTRL, IRQ_VTIMER) == 28
        vcpu.init_pmu(23)
        assert vcpu.get_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.IRQ) == 23
        with pytest.raises(KvmError, match=r"\(group=PMU_V3_CTRL, attr=INIT\).*EBUSY"):
            vcpu.set_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.INIT)
        vcpu.set_pvtime(RAM_BASE + 0x1000)
        assert vcpu.get_attr(VcpuGroup.PVTIME_CTRL, PvtimeAttr.IPA) == RAM_BASE + 0x1000


def test_has_attr_is_false_for_an_unknown_attribute() -> None:
    with guest("spin") as made:
        assert not made.vcpu.has_attr(99, 0)
        assert not made.vcpu.has_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.INIT)
        assert not made.vm.has_attr(99, 0)
        assert made.vcpu.has_attr(VcpuGroup.TIMER_CTRL, IRQ_PTIMER)


def test_create_vcpu_is_refused_after_the_gic() -> None:
    with guest("spin", gic=True) as made, pytest.raises(KvmError) as caught:
        made.vm.create_vcpu(1)

    assert caught.value.errno == errno.EBUSY
    assert caught.value.hint == "create vCPUs before the GIC is initialised"


def test_close_of_an_open_vcpu_is_idempotent_and_final() -> None:
    with guest("spin") as made:
        made.vcpu.close()
        made.vcpu.close()

        assert refusal(made.vcpu.run) == errno.EBADF
        assert refusal(lambda: made.vcpu.get_one_reg(regs.PC)) == errno.EBADF
        made.vcpu.kick()
        made.vcpu.set_mmio_data(1)


def test_create_device_refuses_a_type_that_the_host_lacks() -> None:
    with guest("spin") as made, pytest.raises(KvmError, match="type=ARM_VGIC_V2") as caught:
        made.vm.create_device(DeviceType.ARM_VGIC_V2)

    assert caught.value.errno == errno.ENODEV


def test_preferred_target_is_generic() -> None:
    with guest("spin") as made:
        assert made.vm.preferred_target() == 5
