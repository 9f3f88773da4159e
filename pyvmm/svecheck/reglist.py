"""KVM_GET_REG_LIST: its content, its order, and the size of the list."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import partial
from itertools import groupby

from pyvmm.arm64.vl import legal_sets, show
from pyvmm.kvm import ioctls, regs
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.svecheck import ids
from pyvmm.svecheck import promises as doc
from pyvmm.svecheck.bench import PLAIN, Bench, alike, each, outcome
from pyvmm.svecheck.case import Known, case

SVE_REGISTERS = {**ids.VLS, **ids.Z_P_FFR}
TIMERS = {regs.TIMER_CTL, regs.TIMER_CVAL, regs.TIMER_CNT, regs.PTIMER_CTL, regs.PTIMER_CVAL,
          regs.PTIMER_CNT}  # fmt: skip
GROUPS = {regs.CORE: "core", regs.SVE: "SVE", regs.FW: "firmware", regs.FW_FEAT_BMAP: "firmware",
          regs.SYSREG: "sysregs", regs.DEMUX: "CCSIDR"}  # fmt: skip
SLICE_BITS = 2048


def _compare(found: Iterable[int], right: Iterable[int]) -> str:
    """Return ``as promised``, or the missing and the surplus registers."""
    found, right = set(found), set(right)
    words = [
        f"{what} {' '.join(regs.name(reg) for reg in sorted(which)[:6])}"
        for what, which in (("lacks", right - found), ("also has", found - right))
        if which
    ]
    return "; ".join(words) or "as promised"


def _sve(listed: Iterable[int]) -> list[int]:
    return [reg for reg in listed if regs.group(reg) == regs.SVE]


@case(doc.SVE_IDS, "as promised")
def sve_registers(bench: Bench) -> str:
    """List a vCPU with SVE: SVE_VLS, and slice 0 of Z0-Z31, P0-P15 and FFR"""
    return _compare(_sve(bench.final().get_reg_list()), SVE_REGISTERS.values())


@case(doc.SEED_NOT_LISTED, "none")
def surplus_slices(bench: Bench) -> str:
    """List a vCPU with SVE: slices 1 to 31"""
    surplus = set(ids.SURPLUS.values())
    return _names(reg for reg in bench.final().get_reg_list() if reg in surplus)


@case(doc.SEED_SLICES, "as many")
def slices_by_the_longest_length(bench: Bench) -> str:
    """List the slices of Z0-Z31, P0-P15 and FFR, with each set of lengths"""
    wrong = {}
    for vls in legal_sets(bench.host.vls):
        listed = set(_sve(bench.final(vls).get_reg_list())) - {regs.SVE_VLS}
        slices = range(-(-max(vls) // SLICE_BITS))
        if listed != {reg + slice_ for reg in ids.Z_P_FFR.values() for slice_ in slices}:
            wrong[show(vls)] = f"{len(listed)} registers with their slices"
    return alike(wrong) if wrong else "as many"


@case(doc.NEEDS_SVE, "none")
def no_sve_registers_without_sve(bench: Bench) -> str:
    """List a vCPU without SVE: SVE registers and ZCR_EL1"""
    listed = bench.vcpu(PLAIN).get_reg_list()
    return _names([*_sve(listed), *(reg for reg in listed if reg == ids.ZCR_EL1)])


@case(doc.V_REPLACED, "none")
def no_v_registers_with_sve(bench: Bench) -> str:
    """List a vCPU with SVE: V0 to V31"""
    return _names(reg for reg in bench.final().get_reg_list() if reg in ids.V.values())


@case(doc.V_ACCEPTED, "as promised")
def v_registers_without_sve(bench: Bench) -> str:
    """List a vCPU without SVE: V0 to V31"""
    listed = bench.vcpu(PLAIN).get_reg_list()
    return _compare((reg for reg in listed if reg in ids.V.values()), ids.V.values())


@case(doc.LISTS, "as promised")
def what_sve_changes(bench: Bench) -> str:
    """List vCPUs with and without SVE: V registers out, SVE's and ZCR_EL1 in, nothing else"""
    plain = set(bench.vcpu(PLAIN).get_reg_list())
    right = plain - set(ids.V.values()) | set(SVE_REGISTERS.values()) | {ids.ZCR_EL1}
    return _compare(bench.final().get_reg_list(), right)


@case(doc.LISTS, "the same")
def whatever_the_set(bench: Bench) -> str:
    """List a vCPU with each set of lengths"""
    lists = {tuple(bench.final(vls).get_reg_list()) for vls in legal_sets(bench.host.vls)}
    return "the same" if len(lists) == 1 else f"{len(lists)} different lists"


@case(doc.LISTS, "the same")
def after_a_run_and_init_again(bench: Bench) -> str:
    """List a vCPU before and after its guest ran, and after a second INIT"""
    vcpu = bench.final(vm=bench.vm_with("lengths"))
    lists = [vcpu.get_reg_list()]
    bench.reports(vcpu, 16)
    lists.append(vcpu.get_reg_list())
    bench.init(vcpu)
    lists.append(vcpu.get_reg_list())
    return "the same" if all(listed == lists[0] for listed in lists) else "different lists"


@case(doc.LISTS, "none")
def twice(bench: Bench) -> str:
    """List a vCPU with SVE: duplicate ids"""
    listed = bench.final().get_reg_list()
    return _names(reg for reg in set(listed) if listed.count(reg) > 1)


@case(doc.LISTS, "ok")
def readable(bench: Bench) -> str:
    """Read every register listed"""
    vcpu = bench.final()
    return each({regs.name(reg): partial(vcpu.get_one_reg, reg) for reg in vcpu.get_reg_list()})


@case(doc.LISTS, "ok, but SVE_VLS: EPERM")
def writable(bench: Bench) -> str:
    """Write every listed register with its own value, in the order of the list"""
    vcpu = bench.final()
    refused = {}
    for reg in vcpu.get_reg_list():
        value = vcpu.get_one_reg(reg)
        word = outcome(partial(vcpu.set_one_reg, reg, value))
        if word != "ok":
            refused[regs.name(reg)] = word
    pairs = "; ".join(f"{name}: {word}" for name, word in refused.items())
    return f"ok, but {pairs}" if refused else "ok"


# The size of the list
@case(doc.LIST_TOO_BIG, "E2BIG, n = the number of registers")
def too_small(bench: Bench) -> str:
    """Get the list with room for 0 registers, for 1, and for all except one"""
    vcpu = bench.final()
    count = len(vcpu.get_reg_list())
    return alike({f"n={room}": _ask(vcpu, room, count) for room in (0, 1, count - 1)})


@case(doc.LISTS, "ok, n = the number of registers")
def too_large(bench: Bench) -> str:
    """Get the list with room for one register too many"""
    vcpu = bench.final()
    count = len(vcpu.get_reg_list())
    return _ask(vcpu, count + 1, count)


def _ask(vcpu: Vcpu, room: int, count: int) -> str:
    """Request a list with that much room; return the outcome, and whether n is then ``count``."""
    buffer = bytearray(8 + 8 * room)
    struct.pack_into("<Q", buffer, 0, room)
    word = outcome(lambda: ioctls.GET_REG_LIST.at(vcpu.fd, buffer, f"vcpu {vcpu.id}, n={room}"))
    (n,) = struct.unpack_from("<Q", buffer)
    return f"{word}, n = {'the number of registers' if n == count else n}"


# Order
@case(doc.LIST_ORDER, "core, then SVE with the set first")
def begins_with(bench: Bench) -> str:
    """List a vCPU with SVE: the places of core and SVE registers"""
    listed = bench.final().get_reg_list()
    order = [group for group, _ in groupby(listed, lambda reg: GROUPS.get(regs.group(reg)))]
    first = regs.name(_sve(listed)[0])
    right = order[:2] == ["core", "SVE"] and order.count("core") == order.count("SVE") == 1
    if right and first == "SVE_VLS":
        return "core, then SVE with the set first"
    return f"{', '.join(map(str, order))}; SVE's first is {first}"


@case(doc.LIST_ORDER, "Z, P, FFR")
def order_of_sve_registers(bench: Bench) -> str:
    """List a vCPU with SVE: the order of SVE's registers after the set"""
    found = _sve(bench.final().get_reg_list())[1:]
    return "Z, P, FFR" if found == list(ids.Z_P_FFR.values()) else _names(found)


ORDER = "core, SVE, firmware, timers, sysregs, CCSIDR"


@case(
    doc.LIST_ORDER,
    ORDER,
    Known("core, SVE, firmware, sysregs, timers, sysregs, CCSIDR", doc.TIMERS_AMONG_SYSREGS),
)
def order_of_the_others(bench: Bench) -> str:
    """List a vCPU with SVE: the order of the groups"""

    def group(reg: int) -> str:
        return "timers" if reg in TIMERS else GROUPS.get(regs.group(reg), f"{reg:#x}")

    return ", ".join(name for name, _ in groupby(bench.final().get_reg_list(), group))


def _names(found: Iterable[int]) -> str:
    return " ".join(regs.name(reg) for reg in sorted(found)) or "none"
