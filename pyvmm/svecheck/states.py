"""The states of a vCPU: what each ioctl does before and after INIT and FINALIZE."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from pyvmm.base.records import Record
from pyvmm.kvm import ioctls, regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.svecheck import ids
from pyvmm.svecheck import promises as doc
from pyvmm.svecheck.bench import PLAIN, SVE, Bench, Skip, alike, each, outcome
from pyvmm.svecheck.case import Case, Promise, case

NO_FEATURE = 7 * 32 - 1  # the last bit of kvm_vcpu_init.features
NO_TARGET = 77


# The states, each with a function that makes a vCPU in that state.
STATES: dict[str, tuple[str, Callable[[Bench], Vcpu]]] = {
    "created": ("on a vCPU that was only created", lambda bench: bench.created()),
    "without-sve": ("after INIT without SVE", lambda bench: bench.vcpu(PLAIN)),
    "initialised": ("after INIT with SVE, before FINALIZE", lambda bench: bench.vcpu()),
    "finalized": ("after FINALIZE", lambda bench: bench.final()),
}


Cell = tuple[str, Promise]  # the outcome of a call in one state, and the promise


class StateRow(Record):
    """A call, and its outcome in each of STATES; None is not checked."""

    name: str
    done: str
    do: Callable[[Vcpu], str]
    cells: tuple[Cell | None, ...]


def _get(registers: Mapping[str, int], vcpu: Vcpu) -> str:
    return each({name: partial(vcpu.get_one_reg, reg) for name, reg in registers.items()})


def _set(registers: Mapping[str, int], vcpu: Vcpu) -> str:
    """Write the current value, or zero if it cannot be read."""
    return each({name: _setter(vcpu, reg) for name, reg in registers.items()})


def _setter(vcpu: Vcpu, reg: int) -> Callable[[], None]:
    value = 0
    if outcome(lambda: vcpu.get_one_reg(reg)) == "ok":
        value = vcpu.get_one_reg(reg)
    return partial(vcpu.set_one_reg, reg, value)


def _run(vcpu: Vcpu) -> str:
    """Enter KVM_RUN, which returns at once: a kick came before."""
    vcpu.kick()
    return outcome(vcpu.run)


def _count(vcpu: Vcpu) -> str:
    """Request a list without room for an entry."""
    empty = bytearray(struct.pack("<Q", 0))
    return outcome(lambda: ioctls.GET_REG_LIST.at(vcpu.fd, empty, f"vcpu {vcpu.id}, n=0"))


def _finalize_others(vcpu: Vcpu) -> str:
    others = (-1, *(n for n in range(33) if n != VcpuFeature.SVE))
    return each({str(n): partial(vcpu.finalize, n) for n in others})


_NO_INIT = ("ENOEXEC", doc.ALL_NEED_INIT)
_NO_SVE = ("ENOENT", doc.NEEDS_SVE)
_EARLY = ("EPERM", doc.REGS_NEED_FINALIZE)
_CORE = ("ok", doc.CORE)
_SYSREG = ("ok", doc.SYSREGS)
_SLICE = ("ENOENT", doc.SLICES)
_NO_V = ("EINVAL", doc.V_REPLACED)
_OK_V = ("ok", doc.V_ACCEPTED)
_ABSENT = ("EINVAL", doc.FINALIZE_ABSENT)
_FINAL = ("ok", doc.RUNS)


def _access(
    name: str, words: str, registers: Mapping[str, int], *cells: Cell
) -> tuple[StateRow, StateRow]:
    """Return the rows for reading registers, and for writing their own values."""
    return (
        StateRow(f"get-{name}", f"read {words}", partial(_get, registers), (_NO_INIT, *cells)),
        StateRow(f"set-{name}", f"write {words}", partial(_set, registers), (_NO_INIT, *cells)),
    )


ROWS = (
    StateRow("run", "KVM_RUN", _run,
        (("ENOEXEC", doc.RUN_NEEDS_INIT), ("ok", doc.RUNS),
         ("EPERM", doc.RUN_NEEDS_FINALIZE), _FINAL)),
    StateRow("list", "KVM_GET_REG_LIST", lambda vcpu: outcome(vcpu.get_reg_list),
        (_NO_INIT, ("ok", doc.LISTS), ("EPERM", doc.LIST_NEEDS_FINALIZE),
         ("ok", doc.LISTS))),
    StateRow("list-of-none", "KVM_GET_REG_LIST with n=0", _count,
        (_NO_INIT, ("E2BIG", doc.LIST_TOO_BIG), ("EPERM", doc.LIST_NEEDS_FINALIZE),
         ("E2BIG", doc.LIST_TOO_BIG))),
    *_access("core", "X0, X30, SP, PC, PSTATE, FPSR, FPCR", ids.CORE, _CORE, _CORE, _CORE),
    *_access("sysregs", "MPIDR_EL1, ID_AA64PFR0_EL1, ID_AA64ZFR0_EL1", ids.SYSREGS,
             _SYSREG, _SYSREG, _SYSREG),
    *_access("zcr", "ZCR_EL1", {"ZCR_EL1": ids.ZCR_EL1}, _NO_SVE, _SYSREG, _SYSREG),
    StateRow("get-vls", "read KVM_REG_ARM64_SVE_VLS", partial(_get, ids.VLS),
        (_NO_INIT, _NO_SVE, ("ok", doc.VLS_READABLE), ("ok", doc.VLS_READABLE))),
    StateRow("set-vls", "write KVM_REG_ARM64_SVE_VLS with its own value", partial(_set, ids.VLS),
        (_NO_INIT, _NO_SVE, ("ok", doc.VLS_WRITABLE), ("EPERM", doc.VLS_IMMUTABLE))),
    StateRow("set-wrong-vls", "write an empty set",
        lambda vcpu: outcome(lambda: vcpu.set_one_reg(regs.SVE_VLS, 0)),
        (_NO_INIT, _NO_SVE, ("EINVAL", doc.INVALID_SET), ("EPERM", doc.VLS_IMMUTABLE))),
    *_access("sve", "slice 0 of Z0-Z31, P0-P15 and FFR", ids.Z_P_FFR, _NO_SVE, _EARLY, _FINAL),
    *_access("surplus", "slices 1 to 31 of Z0-Z31, P0-P15 and FFR", ids.SURPLUS,
             _NO_SVE, _SLICE, _SLICE),
    *_access("v", "V0 to V31", ids.V, _OK_V, _NO_V, _NO_V),
    StateRow("get-mp-state", "KVM_GET_MP_STATE", lambda vcpu: outcome(vcpu.get_mp_state),
        (None, _FINAL, _FINAL, _FINAL)),
    StateRow("get-events", "KVM_GET_VCPU_EVENTS", lambda vcpu: outcome(vcpu.get_vcpu_events),
        (None, _FINAL, _FINAL, _FINAL)),
    StateRow("finalize-others", "FINALIZE every number but SVE's, -1 to 32", _finalize_others,
        (_NO_INIT, _ABSENT, _ABSENT, _ABSENT)),
    StateRow("finalize", "FINALIZE SVE",
        lambda vcpu: outcome(lambda: vcpu.finalize(VcpuFeature.SVE)),
        (_NO_INIT, _ABSENT, ("ok", doc.FINALIZE), ("EPERM", doc.FINALIZE_TWICE))),
)  # fmt: skip


def _do_in(make: Callable[[Bench], Vcpu], do: Callable[[Vcpu], str], bench: Bench) -> str:
    return do(make(bench))


def _table() -> Iterator[Case]:
    for row in ROWS:
        for (state, (words, make)), cell in zip(STATES.items(), row.cells, strict=True):
            if cell is None:
                continue
            expected, promise = cell
            name, done = f"states/{row.name}-{state}", f"{row.done} {words}"
            yield Case(name, done, promise, expected, partial(_do_in, make, row.do))


TABLE = tuple(_table())


# The capability, and arguments that INIT refuses.
@case(doc.CAPABILITY, "1")
def capability(bench: Bench) -> str:
    """Check KVM_CAP_ARM_SVE on /dev/kvm and on a VM"""
    return alike(
        {
            "/dev/kvm": str(bench.system.check_extension(Cap.ARM_SVE)),
            "VM": str(bench.vm().check_extension(Cap.ARM_SVE)),
        }
    )


@case(doc.UNKNOWN_FEATURE, "ENOENT")
def init_unknown_feature(bench: Bench) -> str:
    """Run INIT with SVE and the last feature bit"""
    vcpu = bench.created()
    return outcome(lambda: bench.init(vcpu, (*SVE, NO_FEATURE)))


@case(doc.UNKNOWN_TARGET, "EINVAL")
def init_unknown_target(bench: Bench) -> str:
    """Run INIT with SVE and target 77"""
    vcpu = bench.created()
    return outcome(lambda: vcpu.init(NO_TARGET, SVE))


@case(doc.FEATURE_32BIT, "ok")
def init_with_32bit(bench: Bench) -> str:
    """Run INIT with SVE and EL1_32BIT"""
    if not bench.system.has(Cap.ARM_EL1_32BIT):
        raise Skip("needs a host whose CPUs run 32-bit code at EL1")
    vcpu = bench.created()
    return outcome(lambda: bench.init(vcpu, (*SVE, VcpuFeature.EL1_32BIT)))
