"""Sets of vector lengths: those that KVM accepts, and those that it refuses.

The rule is is_legal() of arm64/vl.py: a set has every length of the host up to its longest.
vq_present() of Linux 5.2-rc6 (0c529ff789bc, fixed by e644fa18e2ff) compared a bit of the set with
a bool, so it accepted some illegal sets and refused some legal ones.  So the cases try every bit on
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import combinations

from pyvmm.arm64.vl import QUADWORD, VlSet, is_legal, legal_sets, show, up_to
from pyvmm.kvm import regs, sve
from pyvmm.kvm.sve import bitmap, lengths
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.svecheck import promises as doc
from pyvmm.svecheck.bench import Bench, Skip, alike, outcome, some
from pyvmm.svecheck.case import case

BITS = 512  # of KVM_REG_ARM64_SVE_VLS
EXHAUSTIVE = 6  # quadwords: every set of lengths up to there is tried
AS_ON_A64FX = frozenset({128, 256, 512})
RULE = "as the rule says"


def _try(vcpu: Vcpu, bits: int) -> str:
    return outcome(partial(vcpu.set_one_reg, regs.SVE_VLS, bits))


def _try_all(bench: Bench, sets: Iterable[int]) -> str:
    """Try all sets one after the other, and return the outcome; without sets skip the case."""
    vcpu = bench.vcpu()
    tried = {bits: _try(vcpu, bits) for bits in sets}
    if not tried:
        raise Skip("this host has no such set")
    words = set(tried.values())
    if len(words) == 1:
        return words.pop()
    return alike({show(lengths(bits)) or "none": word for bits, word in tried.items()})


def _against_the_rule(bench: Bench, sets: Iterable[int]) -> str:
    """Compare KVM with the rule, and return the sets that KVM handles wrongly."""
    vcpu = bench.vcpu()
    wrong = {}
    for bits in sets:
        got = _try(vcpu, bits)
        if got != ("ok" if is_legal(lengths(bits), bench.host.vls) else "EINVAL"):
            wrong[show(lengths(bits)) or "none"] = got
    return f"wrong: {alike(wrong)} for {some(list(wrong))}" if wrong else RULE


@case(doc.INITIAL_SET, lambda host: show(host.own))
def initial(bench: Bench) -> str:
    """Read the set after INIT, and the lengths of the host's programs, by prctl"""
    return show(sve.read_vls(bench.vcpu()))


@case(doc.VLS_ENCODING, "as encoded")
def encoding(bench: Bench) -> str:
    """Read all 512 bits of the set; write and read the shortest length alone"""
    vcpu = bench.vcpu()
    before = vcpu.get_one_reg(regs.SVE_VLS)
    vcpu.set_one_reg(regs.SVE_VLS, 1)
    after = vcpu.get_one_reg(regs.SVE_VLS)
    right = (bitmap(bench.host.vls), 1)
    return "as encoded" if (before, after) == right else f"{before:#x}, then {after:#x}"


@case(doc.PREFIX_SETS, "ok")
def legal_are_taken(bench: Bench) -> str:
    """Choose each set that leaves out only the host's longer lengths, on a new vCPU"""
    return _each_legal(bench, lambda vcpu, vls: sve.read_vls(vcpu))


@case(doc.PREFIX_SETS, "ok")
def legal_can_be_finalized(bench: Bench) -> str:
    """Choose each set without the host's longer lengths, FINALIZE, read it"""

    def finalize(vcpu: Vcpu, vls: VlSet) -> VlSet:
        vcpu.finalize(VcpuFeature.SVE)
        return sve.read_vls(vcpu)

    return _each_legal(bench, finalize)


def _each_legal(bench: Bench, then: Callable[[Vcpu, VlSet], VlSet]) -> str:
    outcomes = {}
    for vls in legal_sets(bench.host.vls):
        vcpu = bench.vcpu()
        word = outcome(partial(sve.write_vls, vcpu, vls))
        if word == "ok" and (read := then(vcpu, vls)) != vls:
            word = f"reads {show(read)}"
        outcomes[show(vls)] = word
    return alike(outcomes)


@case(doc.VLS_WRITABLE, lambda host: show(host.vls))
def can_grow_again(bench: Bench) -> str:
    """Choose the shortest length alone, then each longer set, then read it"""
    bench.need_lengths(2)
    vcpu = bench.vcpu()
    for vls in legal_sets(bench.host.vls):
        sve.write_vls(vcpu, vls)
    return show(sve.read_vls(vcpu))


@case(doc.INVALID_SET, "EINVAL")
def empty(bench: Bench) -> str:
    """Choose the empty set"""
    return _try_all(bench, [0])


@case(doc.INVALID_SET, "EINVAL")
def without_128(bench: Bench) -> str:
    """Remove 128 from each set that has other lengths"""
    bench.need_lengths(2)
    return _try_all(bench, (bitmap(vls) & ~1 for vls in legal_sets(bench.host.vls)[1:]))


@case(doc.INVALID_SET, "EINVAL")
def without_one_between(bench: Bench) -> str:
    """Remove one length below the longest from each set"""
    bench.need_lengths(2)
    legal = legal_sets(bench.host.vls)
    gaps = ((vls, length) for vls in legal for length in sorted(vls - {max(vls)}))
    return _try_all(bench, (bitmap(vls - {length}) for vls, length in gaps))


@case(doc.INVALID_SET, "EINVAL")
def the_longest_alone(bench: Bench) -> str:
    """Choose each length above 128 alone; also with 128, where that set has a gap"""
    bench.need_lengths(2)
    longer = sorted(bench.host.vls)[1:]
    alone = [bitmap([length]) for length in longer]
    return _try_all(bench, [*alone, *(bits | 1 for bits in alone[1:])])


@case(doc.INVALID_SET, "EINVAL")
def with_one_the_host_lacks_below(bench: Bench) -> str:
    """Add a length the host lacks, below the host's longest, to each set"""
    host = bench.host.vls
    lacking = set(range(QUADWORD, max(host), QUADWORD)) - host
    if not lacking:
        raise Skip("needs a host that lacks a length below its longest")
    return _try_all(
        bench,
        (bitmap(vls | {length}) for vls in legal_sets(host) for length in sorted(lacking)),
    )


@case(doc.INVALID_SET, "EINVAL")
def beyond_the_host(bench: Bench) -> str:
    """Add each of the 512 lengths above the host's longest to the host's set"""
    host = bitmap(bench.host.vls)
    return _try_all(bench, (host | 1 << bit for bit in range(host.bit_length(), BITS)))


@case(doc.INVALID_SET, "EINVAL")
def beyond_the_architecture(bench: Bench) -> str:
    """Choose all 512 lengths, and the first of each of the eight words alone"""
    return _try_all(bench, [(1 << BITS) - 1, *(1 << word for word in range(64, BITS, 64))])


@case(doc.PREFIX_SETS, lambda host: "ok" if is_legal(AS_ON_A64FX, host.vls) else "EINVAL")
def as_on_a64fx(bench: Bench) -> str:
    """Choose 128, 256 and 512, which is legal only if the host lacks 384"""
    if max(bench.host.vls) < max(AS_ON_A64FX):
        raise Skip("needs a host with 512 bits")
    return _try_all(bench, [bitmap(AS_ON_A64FX)])


@case(doc.PREFIX_SETS, RULE)
def refused_though_legal(bench: Bench) -> str:
    """Choose each legal set on one vCPU: an early vq_present() refused those above 128"""
    return _against_the_rule(bench, map(bitmap, legal_sets(bench.host.vls)))


@case(doc.INVALID_SET, RULE)
def accepted_though_not(bench: Bench) -> str:
    """Flip each of the 512 bits of each legal set"""
    legal = list(map(bitmap, legal_sets(bench.host.vls)))
    return _against_the_rule(bench, (bits ^ 1 << bit for bits in legal for bit in range(BITS)))


@case(doc.INVALID_SET, RULE)
def every_set_of_short_lengths(bench: Bench) -> str:
    """Choose every set of the lengths from 128 to 768"""
    return _against_the_rule(bench, range(1 << EXHAUSTIVE))


@case(doc.INVALID_SET, RULE)
def every_pair_left_out(bench: Bench) -> str:
    """Remove any two lengths from the host's set"""
    bench.need_lengths(3)
    host = bench.host.vls
    return _against_the_rule(bench, (bitmap(host - set(two)) for two in combinations(host, 2)))


@case(doc.FAILED_SET, "unchanged")
def refused_set_changes_nothing(bench: Bench) -> str:
    """Choose each legal set, try some illegal ones, and read the set"""
    vcpu = bench.vcpu()
    host = bench.host.vls
    wrong = (0, (1 << BITS) - 1, bitmap(host) | 1 << BITS - 1, bitmap(host) << 1)
    changed = []
    for vls in legal_sets(host):
        sve.write_vls(vcpu, vls)
        for bits in wrong:
            _try(vcpu, bits)
        if sve.read_vls(vcpu) != vls:
            changed.append(show(vls))
    return f"changed {some(changed)}" if changed else "unchanged"


@case(doc.PREFIX_SETS, lambda host: show(up_to(host.vls, 256)))
def others_see_nothing_of_it(bench: Bench) -> str:
    """Choose a set on one vCPU, then 128 alone on a vCPU of another VM; read the first set"""
    vcpu, other = bench.vcpu(), bench.vcpu()
    sve.write_vls(vcpu, up_to(bench.host.vls, 256))
    sve.write_vls(other, [QUADWORD])
    return show(sve.read_vls(vcpu))
