"""A second INIT of a vCPU: what it accepts, what it resets, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from pyvmm.arm64.vl import show
from pyvmm.kvm import regs, sve
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.svecheck import ids
from pyvmm.svecheck import promises as doc
from pyvmm.svecheck.bench import PLAIN, SVE, Bench, each, outcome, values
from pyvmm.svecheck.case import Case, case

PSTATE_AT_RESET = 0x3C5  # EL1h; D, A, I and F set


def _ran(bench: Bench) -> Vcpu:
    """Return a finalized vCPU whose guest ran."""
    vcpu = bench.final(vm=bench.vm_with("lengths"))
    bench.reports(vcpu, 1)
    return vcpu


# After INIT, FINALIZE or a run
LATER: dict[str, tuple[str, Callable[[Bench], Vcpu]]] = {
    "initialised": ("before FINALIZE", lambda bench: bench.vcpu()),
    "finalized": ("after FINALIZE", lambda bench: bench.final()),
    "ran": ("after the guest ran", _ran),
}
OTHERS = {
    "SVE left out": PLAIN,
    "PSCI left out": (VcpuFeature.SVE,),
    "EL1_32BIT added": (*SVE, VcpuFeature.EL1_32BIT),
}


def _init_again() -> Iterator[Case]:
    for state, (words, make) in LATER.items():

        def same(bench: Bench, make: Callable[[Bench], Vcpu] = make) -> str:
            vcpu = make(bench)
            return outcome(lambda: bench.init(vcpu))

        def other(bench: Bench, make: Callable[[Bench], Vcpu] = make) -> str:
            vcpu = make(bench)
            return each({name: partial(bench.init, vcpu, f) for name, f in OTHERS.items()})

        def power_off(bench: Bench, make: Callable[[Bench], Vcpu] = make) -> str:
            vcpu = make(bench)
            return outcome(lambda: bench.init(vcpu, (*SVE, VcpuFeature.POWER_OFF)))

        yield Case(f"again/same-{state}", f"INIT again, the same, {words}", doc.AGAIN, "ok", same)
        yield Case(
            f"again/other-features-{state}",
            f"INIT again without SVE, without PSCI, or with EL1_32BIT, {words}",
            doc.SAME_FEATURES,
            "EINVAL",
            other,
        )
        yield Case(
            f"again/adding-power-off-{state}",
            f"INIT again with POWER_OFF added, {words}",
            doc.SAME_FEATURES,
            "EINVAL",
            power_off,
            (doc.POWER_OFF_MAY_CHANGE,),
        )


INIT_AGAIN = tuple(_init_again())


@case(doc.INITIAL_SET, lambda host: show(host.vls))
def the_set_is_chosen_anew(bench: Bench) -> str:
    """Choose the shortest length alone, run INIT again, read the set"""
    bench.need_lengths(2)
    vcpu = bench.vcpu()
    sve.write_vls(vcpu, [min(bench.host.vls)])
    bench.init(vcpu)
    return show(sve.read_vls(vcpu))


@case(doc.VLS_IMMUTABLE, lambda host: show(frozenset({min(host.vls)})))
def a_final_set_stays(bench: Bench) -> str:
    """Choose the shortest length alone, finalize, run INIT again, read the set"""
    bench.need_lengths(2)
    vcpu = bench.final([min(bench.host.vls)])
    bench.init(vcpu)
    return show(sve.read_vls(vcpu))


@case(doc.FINALIZE_TWICE, "EPERM")
def it_stays_final(bench: Bench) -> str:
    """Finalize, run INIT again, then finalize again and write the set"""
    vcpu = bench.final()
    bench.init(vcpu)
    return each(
        {
            "FINALIZE": lambda: vcpu.finalize(VcpuFeature.SVE),
            "SET SVE_VLS": lambda: sve.write_vls(vcpu, bench.host.vls),
        }
    )


@case(doc.RESET_SVE, "0x0")
def sve_registers_are_zero_at_first(bench: Bench) -> str:
    """Read Z0-Z31, P0-P15 and FFR of a new vCPU"""
    return values(bench.final(), ids.Z_P_FFR)


@case(doc.RESET_SVE, "0x0")
def sve_registers_become_zero(bench: Bench) -> str:
    """Set all bits of Z0-Z31, P0-P15, FFR, FPSR and FPCR, run INIT again, read them"""
    vcpu = bench.final()
    floats = {name: ids.CORE[name] for name in ("FPSR", "FPCR")}
    for reg in (*ids.Z_P_FFR.values(), *floats.values()):
        vcpu.set_one_reg(reg, (1 << 8 * regs.size(reg)) - 1)
    bench.init(vcpu)
    return values(vcpu, {**ids.Z_P_FFR, **floats})


@case(doc.RESET_SVE, "0x0")
def a_guest_s_sve_registers_become_zero(bench: Bench) -> str:
    """Let a guest fill Z0, P0 and FFR, run INIT again, read all SVE registers"""
    vcpu = bench.final(vm=bench.vm_with("vectors"))
    bench.reports(vcpu, 5)
    if not vcpu.get_one_reg(regs.FFR()):
        return "the guest did not set FFR"
    bench.init(vcpu)
    return values(vcpu, ids.Z_P_FFR)


@case(doc.RESET_CORE, f"0x0, PSTATE {PSTATE_AT_RESET:#x}")
def a_guest_s_core_registers_are_reset(bench: Bench) -> str:
    """Let a guest run, run INIT again, read X0-X30, SP, PC and PSTATE"""
    vcpu = _ran(bench)
    bench.init(vcpu)
    zero = {**{f"X{n}": regs.X(n) for n in range(31)}, "SP": regs.SP_EL0, "PC": regs.PC}
    return f"{values(vcpu, zero)}, PSTATE {vcpu.get_one_reg(regs.PSTATE):#x}"


@case(doc.RESET_SYSREGS, "0x0")
def zcr_is_reset(bench: Bench) -> str:
    """Write 15 to ZCR_EL1, run INIT again, read it"""
    vcpu = bench.final()
    vcpu.set_one_reg(ids.ZCR_EL1, 15)
    bench.init(vcpu)
    return values(vcpu, {"ZCR_EL1": ids.ZCR_EL1})
