"""The guest's view: ID registers, vector lengths by ZCR_EL1.LEN, registers that user space sets."""

from __future__ import annotations

from pyvmm.arm64.esr import Esr
from pyvmm.arm64.idregs import IdAa64Pfr0
from pyvmm.arm64.vl import VlSet, current, legal_sets, show
from pyvmm.kvm import regs
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.svecheck import ids
from pyvmm.svecheck import promises as doc
from pyvmm.svecheck.bench import PLAIN, Bench, alike
from pyvmm.svecheck.case import case

LENS = 16  # values of ZCR_EL1.LEN
EXPECTED_LENGTHS = "as LEN selects"
UNDEFINED_INSTRUCTIONS = 4  # of the program "undefined"
Z1 = sum((3 * n + 1 & 0xFF) << 8 * n for n in range(256))  # neighbouring bytes differ


def seen_lengths(bench: Bench, vcpu: Vcpu, vls: VlSet) -> str:
    """Compare RDVL in a guest for each ZCR_EL1.LEN with the length that LEN selects."""
    seen = bench.reports(vcpu, LENS)
    right = [current(vls, len_) // 8 for len_ in range(LENS)]
    return EXPECTED_LENGTHS if seen == right else f"RDVL {' '.join(map(str, seen))}"


@case(doc.PFR0, "1, as KVM_GET_ONE_REG")
def pfr0_with_sve(bench: Bench) -> str:
    """Let a guest with SVE read ID_AA64PFR0_EL1.SVE"""
    return _id_registers(bench, bench.final(vm=bench.vm_with("id")))[0]


@case(doc.ZFR0, "as KVM_GET_ONE_REG")
def zfr0_with_sve(bench: Bench) -> str:
    """Let a guest with SVE read ID_AA64ZFR0_EL1"""
    return _id_registers(bench, bench.final(vm=bench.vm_with("id")))[1].partition(", ")[2]


@case(doc.PFR0, "0, as KVM_GET_ONE_REG")
def pfr0_without_sve(bench: Bench) -> str:
    """Let a guest without SVE read ID_AA64PFR0_EL1.SVE"""
    return _id_registers(bench, bench.vcpu(PLAIN, bench.vm_with("id")))[0]


@case(doc.ZFR0, "0x0, as KVM_GET_ONE_REG")
def zfr0_without_sve(bench: Bench) -> str:
    """Let a guest without SVE read ID_AA64ZFR0_EL1"""
    return _id_registers(bench, bench.vcpu(PLAIN, bench.vm_with("id")))[1]


def _id_registers(bench: Bench, vcpu: Vcpu) -> tuple[str, str]:
    """Return the guest's PFR0.SVE and ZFR0, and whether KVM_GET_ONE_REG reads the same."""
    seen = bench.reports(vcpu, 2)
    read = [vcpu.get_one_reg(reg) for reg in (ids.ID_AA64PFR0_EL1, ids.ID_AA64ZFR0_EL1)]
    pfr0, zfr0 = (
        "as KVM_GET_ONE_REG" if one == other else f"not {other:#x}"
        for one, other in zip(seen, read, strict=True)
    )
    return f"{int(IdAa64Pfr0(seen[0]).SVE)}, {pfr0}", f"{seen[1]:#x}, {zfr0}"


@case(doc.ZCR_LEN, "0xf")
def zcr_bits(bench: Bench) -> str:
    """Let a guest write all ones to ZCR_EL1, and read it"""
    (zcr,) = bench.reports(bench.final(vm=bench.vm_with("zcr")), 1)
    return f"{zcr:#x}"


@case(doc.ZCR_SELECTS, EXPECTED_LENGTHS)
def lengths(bench: Bench) -> str:
    """Let a guest read RDVL for each ZCR_EL1.LEN, with each set of lengths"""
    return alike(
        {
            show(vls): seen_lengths(bench, bench.final(vls, bench.vm_with("lengths")), vls)
            for vls in legal_sets(bench.host.vls)
        }
    )


@case(doc.ZCR_SELECTS, EXPECTED_LENGTHS)
def lengths_after_init_again(bench: Bench) -> str:
    """Let a guest with the shortest length alone read RDVL, before and after a second INIT"""
    shortest = frozenset({min(bench.host.vls)})
    vcpu = bench.final(shortest, bench.vm_with("lengths"))
    before = seen_lengths(bench, vcpu, shortest)
    bench.init(vcpu)
    return alike({"before": before, "after": seen_lengths(bench, vcpu, shortest)})


@case(doc.UNDEFINED, "4 times UNKNOWN")
def sve_without_sve(bench: Bench) -> str:
    """Let a guest without SVE execute RDVL, MSR and MRS of ZCR_EL1, and INDEX; read ESR_EL1"""
    vcpu = bench.vcpu(PLAIN, bench.vm_with("undefined"))
    classes = [Esr(esr).EC for esr in bench.reports(vcpu, UNDEFINED_INSTRUCTIONS)]
    words = alike({str(n): getattr(ec, "name", str(int(ec))) for n, ec in enumerate(classes)})
    return f"{len(classes)} times {words}"


@case(doc.REG_VALUES, "arrive")
def what_we_write(bench: Bench) -> str:
    """Write Z1, P1 and FFR, and let a guest read them, with each set of lengths"""
    outcomes = {}
    for vls in legal_sets(bench.host.vls):
        size = max(vls) // 8
        vcpu = bench.final(vls, bench.vm_with("vectors"))
        # Without this the vCPU may lose the bits beyond its current length when it is entered.
        vcpu.set_one_reg(ids.ZCR_EL1, LENS - 1)
        for reg, value in ((regs.Z(1), Z1), (regs.P(1), _ones(256)), (regs.FFR(), _ones(3))):
            vcpu.set_one_reg(reg, value)
        right = [Z1 & _ones(64), Z1 >> 8 * (size - 1) & 0xFF, size, 3]
        seen = bench.reports(vcpu, 4)
        outcomes[show(vls)] = "arrive" if seen == right else f"{seen}, not {right}"
    return alike(outcomes)


@case(doc.REG_VALUES, "arrive")
def what_it_writes(bench: Bench) -> str:
    """Let a guest fill Z0, P0 and FFR and clear P3, and read them, with each set of lengths"""
    outcomes = {}
    for vls in legal_sets(bench.host.vls):
        size = max(vls) // 8
        vcpu = bench.final(vls, bench.vm_with("vectors"))
        vcpu.set_one_reg(regs.P(3), _ones(256))
        bench.reports(vcpu, 5)
        right = {"Z0": sum(n << 8 * n for n in range(size)), "P0": _ones(size),
                 "FFR": _ones(size), "P3": 0}  # fmt: skip
        wrong = [n for n, value in right.items() if vcpu.get_one_reg(ids.Z_P_FFR[n]) != value]
        outcomes[show(vls)] = f"wrong: {' '.join(wrong)}" if wrong else "arrive"
    return alike(outcomes)


@case(doc.V_IS_LOW_Z, "0x1234")
def v_is_the_low_part_of_z(bench: Bench) -> str:
    """Write Z1, and let a guest read its FP/SIMD register D1"""
    vcpu = bench.final(vm=bench.vm_with("vectors"))
    vcpu.set_one_reg(regs.Z(1), 0x1234)
    return f"{bench.reports(vcpu, 1)[0]:#x}"


def _ones(bits: int) -> int:
    return (1 << bits) - 1
