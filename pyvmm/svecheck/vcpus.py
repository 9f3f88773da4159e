"""Several vCPUs in one VM, and the differences that KVM allows."""

from __future__ import annotations

from pyvmm.arm64.vl import show
from pyvmm.kvm import regs, sve
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.svecheck import ids
from pyvmm.svecheck import promises as doc
from pyvmm.svecheck.bench import PLAIN, SVE, Bench, alike, outcome, values
from pyvmm.svecheck.case import case
from pyvmm.svecheck.guest import EXPECTED_LENGTHS, seen_lengths


@case(doc.ONE_VM_ONE_SET, "ok")
def different_sets(bench: Bench) -> str:
    """Give one vCPU all lengths and another 128 alone, and finalize both"""
    bench.need_lengths(2)
    vm = bench.vm()
    bench.final(vm=vm)
    return outcome(lambda: bench.final([min(bench.host.vls)], vm, 1))


@case(doc.ONE_VM_ONE_SET, EXPECTED_LENGTHS)
def different_lengths_seen(bench: Bench) -> str:
    """Let guests on a vCPU with all lengths and one with 128 alone read RDVL for each LEN"""
    bench.need_lengths(2)
    vm = bench.vm_with("lengths")
    shortest = frozenset({min(bench.host.vls)})
    first, second = bench.final(vm=vm), bench.final(shortest, vm, 1)
    return alike(
        {
            "vCPU 0": seen_lengths(bench, first, bench.host.vls),
            "vCPU 1": seen_lengths(bench, second, shortest),
        }
    )


@case(doc.VLS_WRITABLE, lambda host: show(host.vls))
def another_s_set(bench: Bench) -> str:
    """Choose 128 alone on one vCPU, and read another vCPU's set"""
    vm = bench.vm()
    first, second = bench.vcpu(vm=vm), bench.vcpu(vm=vm, number=1)
    sve.write_vls(second, [min(bench.host.vls)])
    return show(sve.read_vls(first))


@case(doc.ONE_VM_FEATURES, "EINVAL", doc.FEATURES_MAY_DIFFER)
def one_without_sve(bench: Bench) -> str:
    """Run INIT on one vCPU with SVE, and on the next one without SVE"""
    vm = bench.vm()
    bench.vcpu(vm=vm)
    return outcome(lambda: bench.vcpu(PLAIN, vm, 1))


@case(doc.ONE_VM_FEATURES, "EINVAL", doc.FEATURES_MAY_DIFFER)
def one_with_sve(bench: Bench) -> str:
    """Run INIT on one vCPU without SVE, and on the next one with SVE"""
    vm = bench.vm()
    bench.vcpu(PLAIN, vm)
    return outcome(lambda: bench.vcpu(SVE, vm, 1))


@case(doc.POWER_OFF, "ok")
def one_powered_off(bench: Bench) -> str:
    """Run INIT on one vCPU with SVE, on the next with SVE and POWER_OFF"""
    vm = bench.vm()
    bench.vcpu(vm=vm)
    return outcome(lambda: bench.vcpu((*SVE, VcpuFeature.POWER_OFF), vm, 1))


@case(doc.RUN_NEEDS_FINALIZE, "EPERM")
def finalize_is_for_one(bench: Bench) -> str:
    """Finalize one vCPU, and run another"""
    vm = bench.vm_with("lengths")
    bench.final(vm=vm)
    other = bench.vcpu(vm=vm, number=1)
    other.kick()
    return outcome(other.run)


@case(doc.RUNS, EXPECTED_LENGTHS)
def one_that_is_not_final_yet(bench: Bench) -> str:
    """Finalize one vCPU but not another, and run the first"""
    vm = bench.vm_with("lengths")
    first = bench.final(vm=vm)
    bench.vcpu(vm=vm, number=1)
    return seen_lengths(bench, first, bench.host.vls)


@case(doc.AGAIN, "0x7")
def init_of_another(bench: Bench) -> str:
    """Write 7 to Z0, P0, FFR and ZCR_EL1 of one vCPU, run INIT again on another, read them"""
    vm = bench.vm()
    first, second = bench.final(vm=vm), bench.final(vm=vm, number=1)
    registers = {"Z0": regs.Z(0), "P0": regs.P(0), "FFR": regs.FFR(), "ZCR_EL1": ids.ZCR_EL1}
    for reg in registers.values():
        first.set_one_reg(reg, 7)
    bench.init(second)
    return values(first, registers)


@case(doc.FINALIZE, "ok")
def one_made_late(bench: Bench) -> str:
    """Create and finalize a vCPU after another one ran"""
    vm = bench.vm_with("lengths")
    bench.reports(bench.final(vm=vm), 1)
    return outcome(lambda: bench.final(vm=vm, number=1))
