"""The check whether a host can resume a machine that was saved on another host.

RestoreLimits describes this host, or another one by the JSON that `pyvmm doctor` printed there.
On this host the check writes every register to a VM. For another host it compares the names of
registers and the values of ID registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from enum import Enum

from pyvmm.arm64 import idrules, sysregs, vl
from pyvmm.arm64.idregs import IdAa64Mmfr3
from pyvmm.base.records import Record
from pyvmm.base.units import show_cpulist
from pyvmm.kvm import regs
from pyvmm.kvm.system import System
from pyvmm.machine.board import enable_capabilities
from pyvmm.machine.vcpus import make_vcpus
from pyvmm.snapshot import restoreorder
from pyvmm.snapshot.hostlimits import RestoreLimits
from pyvmm.snapshot.restoreorder import Setting
from pyvmm.snapshot.restorestate import Loss, differences, plan_of, write_registers
from pyvmm.snapshot.state import State


class Compatibility(Enum):
    """Whether a host can give a part of the machine."""

    OK = "ok"
    HARMLESS = "differs, harmless"
    REFUSED = "impossible unless forced"
    IMPOSSIBLE = "impossible"


class CheckedPart(Record):
    """One part of the machine that was checked."""

    name: str
    compatibility: Compatibility
    reason: str

    def allows(self, force: bool) -> bool:
        """Return whether a restore may continue."""
        return self.compatibility in (Compatibility.OK, Compatibility.HARMLESS) or (
            force and self.compatibility is Compatibility.REFUSED
        )


def machine_rows(state: State, limits: RestoreLimits) -> Iterator[CheckedPart]:
    """Check all that needs no VM."""
    yield _at_most("vCPUs", len(state.vcpus), limits.max_vcpus)
    yield _at_most("guest physical address bits", state.ipa_bits, limits.ipa_bits)
    yield _lengths(state, limits)
    lacking = state.features - limits.features
    words = ", ".join(sorted(feature.value for feature in lacking or state.features)) or "none"
    reason = f"this host gives guests no {words}" if lacking else words
    yield _needed("CPU features", not lacking, reason)
    has = ", ".join(sorted(limits.gics)) or "none"
    reason = f"the guest has a {state.gic.kind}, this host supports: {has}"
    yield _needed("GIC", state.gic.kind in limits.gics, reason)
    yield _frequency(state, limits)
    yield from _cpus(state, limits)


def _needed(name: str, given: bool, reason: str) -> CheckedPart:
    """Return the row of a part that a machine cannot run without."""
    return CheckedPart(name, Compatibility.OK if given else Compatibility.IMPOSSIBLE, reason)


def _at_most(name: str, needed: int, most: int) -> CheckedPart:
    return _needed(name, needed <= most, f"{needed}, this host supports up to {most}")


def _lengths(state: State, limits: RestoreLimits) -> CheckedPart:
    vls = state.vls
    if not vls:
        return CheckedPart("SVE", Compatibility.OK, "the guest has none")
    if vl.is_legal(vls, limits.vls):
        return CheckedPart("SVE", Compatibility.OK, f"{vl.show(vls)} bits")
    if not limits.vls:
        reason = "this host has no SVE"
    else:
        reason = f"{vl.why_not(vls, limits.vls)}; this host has {vl.show(limits.vls)}"
    return CheckedPart(
        "SVE", Compatibility.IMPOSSIBLE, f"the guest has {vl.show(vls)} bits: {reason}"
    )


def _cpus(state: State, limits: RestoreLimits) -> Iterator[CheckedPart]:
    """Check the host's CPUs that vCPUs are bound to; most machines have no such set."""
    asked = state.config.vcpu_affinity
    if asked is not None and limits.cpus:
        lacking = asked - limits.cpus
        reason = f"vCPUs run on {show_cpulist(asked)}"
        if lacking:
            reason += f", and this host has no CPU {show_cpulist(lacking)}"
        yield CheckedPart("CPUs", Compatibility.REFUSED if lacking else Compatibility.OK, reason)


def _frequency(state: State, limits: RestoreLimits) -> CheckedPart:
    name, hz = "timer frequency", state.clock.hz
    if hz == limits.counter_hz:
        return CheckedPart(name, Compatibility.OK, f"{hz} Hz")
    speed = limits.counter_hz / hz
    reason = (
        f"the guest's counter runs at {hz} Hz and this host's at {limits.counter_hz}: "
        f"the guest's time would run {speed:.4g} times as fast"
    )
    return CheckedPart(name, Compatibility.REFUSED, reason)


# Registers


def register_row(loss: Loss, registers: Mapping[int, int]) -> CheckedPart:
    """Return the verdict on the loss of one of a vCPU's saved ``registers``."""
    name, reason = restoreorder.name(loss.reg_id), loss.reason
    if why := _why_harmless(loss, name, registers):
        return CheckedPart(name, Compatibility.HARMLESS, f"{reason}: {why}")
    if loss.reg_id in restoreorder.IDENTIFICATION and loss.found is not None:
        saved = registers[loss.reg_id]
        reason += f", was {saved:#x} and is {loss.found:#x} here"
        less = ", ".join(_less(name, saved, loss.found))
        if not less:
            reason += ": this host offers all of it, and more"
            return CheckedPart(name, Compatibility.HARMLESS, reason)
        reason += f", which is less: {less}"
    return CheckedPart(name, Compatibility.REFUSED, reason)


def _why_harmless(loss: Loss, name: str, registers: Mapping[int, int]) -> str:
    """Return why the guest can run without the register, or an empty text."""
    if regs.group(loss.reg_id) == regs.DEMUX or name in CACHES:
        return "the guest uses cache geometry as a hint only"
    unused = loss.missing and is_unused(loss.reg_id, registers)
    dispensable = restoreorder.class_of(loss.reg_id).dispensable
    return dispensable or ("the guest does not use it" if unused else "")


CACHES = ("CLIDR_EL1", "CSSELR_EL1")
TIMER_ENABLE = 1  # of CNT*_CTL
MMFR3 = regs.lookup("ID_AA64MMFR3_EL1", sysregs.ENCODINGS)
# Registers that a guest can access only with a CPU feature, by the feature's field in MMFR3.
# Source: Arm ARM DDI 0487, D23.2, the registers' "Accessing"
OF_FEATURE = {
    "TCR2_EL1": IdAa64Mmfr3.TCRX,
    "SCTLR2_EL1": IdAa64Mmfr3.SCTLRX,
    "PIR_EL1": IdAa64Mmfr3.S1PIE,
    "PIRE0_EL1": IdAa64Mmfr3.S1PIE,
    "POR_EL1": IdAa64Mmfr3.S1POE,
    "POR_EL0": IdAa64Mmfr3.S1POE,
}


def is_unused(reg_id: int, registers: Mapping[int, int]) -> bool:
    """Return whether a register's value is irrelevant to the guest.

    That is so if the value is 0, if the register's timer is off, or if the guest's CPU lacks the
    register's feature: Linux 6.12 lists PIR_EL1 also for a CPU without S1PIE.
    """
    value = registers[reg_id]
    if reg_id == regs.PTIMER_CTL:
        return not value & TIMER_ENABLE
    feature = OF_FEATURE.get(restoreorder.name(reg_id))
    return value == 0 or (feature is not None and feature.get(registers.get(MMFR3, ~0)) == 0)


def _less(name: str, saved: int, found: int) -> Iterator[str]:
    """Yield the fields of an ID register in which the host offers less."""
    for field in idrules.fields(name):
        was, now = int(field.get(saved)), int(field.get(found))
        if idrules.lacks(name, field, was, now):
            yield f"{field.name} {was} to {now}"


def predicted(state: State, limits: RestoreLimits) -> Iterator[CheckedPart]:
    """Check registers against another host, which is known by its RestoreLimits alone."""
    registers = state.vcpus[0].registers
    for reg_id, saved in registers.items():
        row = restoreorder.class_of(reg_id)
        if regs.group(reg_id) in (regs.CORE, regs.SVE) or row.setting is Setting.EARLY:
            continue
        found = limits.registers.get(reg_id)
        if found is None:
            loss = Loss(0, reg_id, "is missing on that host", missing=True)
            yield register_row(loss, registers)
        elif reg_id in restoreorder.IDENTIFICATION:
            here = _after_write(reg_id, saved, found, state, limits)
            if here != saved:
                yield register_row(Loss(0, reg_id, "differs", found=here), registers)


def _after_write(reg_id: int, saved: int, found: int, state: State, limits: RestoreLimits) -> int:
    """Return what an ID register reads on that host after a restore wrote the saved value."""
    name, writable = restoreorder.name(reg_id), limits.writable.get(reg_id, 0)
    if name == "ID_AA64ZFR0_EL1" and not state.vls:
        return saved  # 0 in a guest without SVE
    here = found
    for field in idrules.fields(name):
        was, now = int(field.get(saved)), int(field.get(found))
        written = field.mask & writable == field.mask and not idrules.lacks(name, field, was, now)
        if written or idrules.is_by_feature(name, field.name):
            here = field.put(here, was)
    return here


def tried(system: System, state: State) -> Iterator[CheckedPart]:
    """Check registers on this host: write them all to a vCPU of a VM that never runs."""
    plan = plan_of(state.replace(config=state.config.replace(devices=())))  # opens no file
    with ExitStack() as undo:
        vm = undo.enter_context(system.create_vm(plan.ipa_bits))
        enable_capabilities(system, vm, plan)
        vcpu, saved = make_vcpus(vm, plan, undo)[0], state.vcpus[0]
        losses = write_registers(vcpu, saved)
        losses += differences(vcpu, saved, {loss.reg_id for loss in losses})
        for loss in losses:
            yield register_row(loss, saved.registers)


def summary(rows: Iterable[CheckedPart]) -> CheckedPart:
    """Return one row for all registers that do not differ."""
    differing = len(list(rows))
    return CheckedPart(
        "registers", Compatibility.OK, f"all but {differing}" if differing else "all"
    )
