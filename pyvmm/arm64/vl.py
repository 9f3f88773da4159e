"""Sets of SVE vector lengths: their text, KVM's rule for them, and why KVM refuses one.

A vector length is a multiple of 128 bits from 128 to 2048; every length here is in bits.
Every host with SVE has 128 and may have others. KVM gives a vCPU a set that holds *every* length
of the host up to the set's largest, and no others. So a host has as many legal sets as lengths.

Source: Linux arch/arm64/kvm/guest.c, set_sve_vls(); Arm ARM DDI 0487, "SVE vector length".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pyvmm.errors import UsageError

VlSet = frozenset[int]

QUADWORD = 128  # bits: the shortest length, and the step between lengths
LONGEST = 2048  # bits: the architecture's limit
LENGTHS = frozenset(range(QUADWORD, LONGEST + 1, QUADWORD))
NO_SVE: VlSet = frozenset()

_DECIMAL = r"0|[1-9][0-9]{0,8}"  # not compiled: most runs name no lengths


class TextError(UsageError):
    """Text that is wrong on every host; ``meant`` are the lengths that the user may want.

    ``subject`` is the option or field that has this text as its value. It is empty if the set
    belongs to neither. The hint names ``list_subject``, which takes a list of lengths.
    """

    def __init__(
        self, subject: str, text: str, reason: str, *, list_subject: str, meant: Iterable[int] = ()
    ) -> None:
        self.meant = LENGTHS.intersection(meant)
        self._list_subject = list_subject
        super().__init__(
            f"{_spelled(subject, text)}: {reason}",
            hint="lengths are in bits, each a multiple of 128 up to 2048: "
            + _spelled(list_subject, "128,256"),
        )

    def on(self, host: VlSet) -> TextError:
        """Return the same error, with a hint at what this host can give."""
        self.hint = advice(self.meant, host, self._list_subject)
        return self


def parse(text: str, *, subject: str = "", list_subject: str | None = None) -> VlSet:
    """Read a set such as ``128,256``; see TextError for the subjects.

    Raises: TextError, for text that is wrong on every host.
    """
    items = [item.strip() for item in text.split(",")]
    numbers = [int(item) for item in items if re.fullmatch(_DECIMAL, item)]
    known = frozenset(numbers)
    reason = (
        _malformed(items)
        or _other_unit(known, subject)
        or _out_of_range(numbers)
        or _repeated(numbers)
    )
    if reason:
        lists = subject if list_subject is None else list_subject
        raise TextError(subject, text, reason, list_subject=lists, meant=_meant(known))
    return known


def parse_max(text: str, *, subject: str = "", list_subject: str = "") -> int:
    """Read one length: the upper bound of a set.

    Raises: TextError, as for parse().
    """
    if "," in text:
        reason = "takes one length"
        reason += f"; {list_subject} takes a list" if list_subject else ""
        raise TextError(subject, text, reason, list_subject=list_subject)
    (limit,) = parse(text, subject=subject, list_subject=list_subject)
    return limit


def show(vls: Iterable[int]) -> str:
    """Write a set as parse() reads it: ``128,256``."""
    return ",".join(map(str, sorted(vls)))


def words(vls: Iterable[int]) -> str:
    """Write lengths as in a sentence: ``128, 256 and 384``."""
    *head, last = map(str, sorted(vls))
    return f"{', '.join(head)} and {last}" if head else last


def up_to(host: VlSet, limit: int) -> VlSet:
    """Return the host's lengths up to ``limit``."""
    return frozenset(length for length in host if length <= limit)


def current(vls: VlSet, *lens: int) -> int:
    """Return the length in effect: the set's longest that each of these ZCR_ELx.LEN allows.

    Source: Arm ARM DDI 0487, ZCR_EL1.LEN: a length that is not implemented selects a shorter one.
    """
    return max(up_to(vls, (min(lens) + 1) * QUADWORD), default=min(vls))


def in_use(vls: VlSet, registers: Mapping[str, int]) -> int:
    """Return a vCPU's length in effect at its exception level, from its registers by name.

    ZCR_EL2, where the vCPU has one, bounds EL1 too.
    """
    # Imported lazily: a run does not need them.
    from pyvmm.arm64.control import Zcr
    from pyvmm.arm64.pstate import Mode, Pstate

    zcrs = {name: Zcr(registers[name]).LEN for name in ("ZCR_EL1", "ZCR_EL2") if name in registers}
    if Pstate(registers.get("PSTATE", 0)).M in (Mode.EL2t, Mode.EL2h):
        zcrs.pop("ZCR_EL1", None)
    return current(vls, *zcrs.values()) if zcrs else max(vls)


def by_len(vls: VlSet) -> list[int]:
    """Return the length in effect for each ZCR_EL1.LEN from 0 to 15."""
    from pyvmm.arm64.control import Zcr

    return [current(vls, length) for length in range(Zcr.LEN.largest + 1)]


def is_legal(vls: VlSet, host: VlSet) -> bool:
    """Return whether KVM on a host with those lengths accepts the set."""
    return bool(vls) and vls == up_to(host, max(vls))


def legal_sets(*hosts: VlSet) -> list[VlSet]:
    """Return the sets that KVM accepts on all of these hosts, smallest first."""
    first, *others = hosts
    sets = [up_to(first, limit) for limit in sorted(first)]
    return [vls for vls in sets if all(is_legal(vls, host) for host in others)]


def nearest(asked: VlSet, host: VlSet) -> list[VlSet]:
    """Return the legal sets closest to one that is not, smallest first; at most three.

    They are the largest subset of ``asked``, the largest set without a length above the longest of
    ``asked``, and the smallest set that reaches that length. For an empty ``asked``, return the
    host's smallest and largest set.
    """
    legal = legal_sets(host)
    if not asked:
        return [*legal[:1], *legal[1:][-1:]]
    inside = [vls for vls in legal if vls <= asked]
    shorter = [vls for vls in legal if max(vls) <= max(asked)]
    longer = [vls for vls in legal if max(vls) >= max(asked)]
    chosen = {*inside[-1:], *shorter[-1:], *longer[:1]}
    return sorted(chosen, key=len)


def advice(asked: VlSet, host: VlSet, subject: str) -> str:
    """Return a hint with the sets that this host can give instead of ``asked``."""
    if not host:
        return "this host has no SVE: leave the option out"
    choices = " or ".join(_spelled(subject, show(vls)) for vls in nearest(asked, host))
    return f"this host (which has {show(host)}) can give {choices}"


def why_not(asked: VlSet, host: VlSet) -> str:
    """Return why KVM on a host with those lengths refuses the set; empty if it accepts it."""
    if is_legal(asked, host):
        return ""
    if not host:
        return "the host has no SVE"
    reasons = []
    if lacking := asked - host:
        reasons.append(f"the host does not have {words(lacking)}")
    if skipped := up_to(host, max(asked, default=0)) - asked:
        reasons.append(
            "KVM wants every length the host has below the largest asked for, "
            f"and {words(skipped)} {'is' if len(skipped) == 1 else 'are'} left out"
        )
    return "; ".join(reasons)


def _malformed(items: list[str]) -> str | None:
    """Return why an item is not a decimal number."""
    if items == [""]:
        return "the set is empty, and SVE has 128 bits at least"
    for index, item in enumerate(items):
        if not item:
            return "a length is missing " + (
                "after the last comma" if index == len(items) - 1 else f"at place {index + 1}"
            )
        if item.startswith("-") and re.fullmatch(_DECIMAL, item[1:]):
            return f"{item} is negative"
        if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}", item):
            return f"{item} is hexadecimal; write {int(item, 16)}"
        if re.fullmatch(r"[0-9]+(\s+[0-9]+)+", item):
            return f"{item!r} needs commas between its lengths"
        if not re.fullmatch(_DECIMAL, item):
            return f"{item!r} is not a vector length in bits"
    return None


def _other_unit(numbers: VlSet, subject: str) -> str | None:
    """Return the unit other than bits that the numbers seem to have."""
    readings = []
    if quadwords := _from_quadwords(numbers):
        readings.append(("kvmtool's old 128-bit units", quadwords))
    if from_bytes := _from_bytes(numbers):
        readings.append(("bytes, as prctl and vlset take them,", from_bytes))
    if not readings:
        return None
    likely = ", or ".join(
        f"{unit} and would be {_spelled(subject, show(vls))}" for unit, vls in readings
    )
    return (
        f"lengths are in bits; {'this looks' if len(numbers) == 1 else 'these look'} like {likely}"
    )


def _out_of_range(numbers: list[int]) -> str | None:
    """Return why a number is not an SVE vector length."""
    for number in numbers:
        if number > LONGEST:
            return f"{number} is longer than SVE's longest, 2048 bits"
        if number not in LENGTHS:
            return f"{number} is not a multiple of 128" if number else "0 is not a vector length"
    return None


def _repeated(numbers: list[int]) -> str | None:
    """Return which number is repeated."""
    for number in numbers:
        if numbers.count(number) > 1:
            return f"{number} is given {'twice' if numbers.count(number) == 2 else 'repeatedly'}"
    return None


def _meant(numbers: VlSet) -> VlSet:
    """Return the lengths that the numbers may mean, in bits."""
    in_bits = frozenset(min(number, LONGEST) for number in numbers)
    return (_from_quadwords(numbers) | _from_bytes(numbers)) or in_bits


def _from_quadwords(numbers: VlSet) -> VlSet:
    """Convert 128-bit units to bits; return no lengths if a number cannot be in that unit."""
    vls = frozenset(number * QUADWORD for number in numbers)
    return vls if vls <= LENGTHS else NO_SVE


def _from_bytes(numbers: VlSet) -> VlSet:
    """Convert bytes to bits; return no lengths if the numbers are not in bytes.

    128 and 256 are lengths in both units. Assume bytes if no number is a length in bits, or if 16
    is one of the numbers: every SVE machine has the length of 16 bytes.
    """
    vls = frozenset(number * 8 for number in numbers)
    in_bits = numbers & LENGTHS
    return vls if vls <= LENGTHS and (not in_bits or 16 in numbers) else NO_SVE


def _spelled(subject: str, text: str) -> str:
    """Write a set as a value of its subject."""
    return f"{subject}={text}" if subject else text or "''"
