"""A vCPU's registers as text, for ``pyvmm debug -d`` and ``pyvmm snapshot show``.

Every register that was read is shown: with its fields, in a grid, or by name if it is zero.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, islice

from pyvmm.arm64.aarch32 import STATES
from pyvmm.arm64.control import Zcr
from pyvmm.arm64.core import GENERAL_REGISTERS
from pyvmm.arm64.fields import FIELDS
from pyvmm.arm64.pstate import Mode, pstate
from pyvmm.base.records import Record
from pyvmm.commands.registers.words import explain
from pyvmm.machine.registerdump import VcpuRegisters

WIDTH = 100
NAME = 17  # columns of a name
VALUE = 18  # columns of 64 bits
INDENT = "  "
GROUP = 16  # hex digits of a vector in a group: 64 bits
GROUPS = 4  # in a line

# KVM's value for a register whose reset value is architecturally UNKNOWN.
# Source: Linux, arch/arm64/kvm/sys_regs.h, reset_unknown()
NEVER_WRITTEN = 0x1DE7_EC7E_DBAD_C0DE

STACK_POINTERS: dict[int, str] = {
    Mode.EL0t: "SP_EL0", Mode.EL1t: "SP_EL0", Mode.EL1h: "SP_EL1", Mode.EL2t: "SP_EL0",
    Mode.EL2h: "SP_EL2",
}  # fmt: skip

VECTORS = r"[VZP]\d+|FFR"  # names
_NUMBERED = re.compile(r"([A-Z]+)(\d+)((?:_EL\d)?)")

Values = Mapping[str, str]


class Section(Record):
    """A headline, its part, and a pattern of the names of its registers.

    An empty pattern takes the registers that match no other section. Registers in ``always`` come
    first, even if they are zero.
    """

    title: str
    part: str
    pattern: str
    always: tuple[str, ...] = ()


# A register is in the first section that it matches.
SECTIONS = (
    Section("general registers", "core", r"X\d+|PC|PSTATE|SP_EL\d"),
    Section("exceptions", "core", r"(ESR|FAR|ELR|V?SPSR|VBAR|HPFAR|AFSR\d|V?DISR|VSESR|IFSR32)_.*",
            ("ESR_EL1", "FAR_EL1", "ELR_EL1", "SPSR_EL1", "VBAR_EL1")),
    Section("floating point", "core", r"FPCR|FPSR|FPEXC32_EL2"),
    Section("system control", "sys", "",
            ("SCTLR_EL1", "CPACR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1", "MAIR_EL1")),
    Section("timers", "sys", r"P?TIMER_.*|CNT.*", ("TIMER_CTL", "TIMER_CVAL", "TIMER_CNT")),
    Section("GIC CPU interface", "sys", r"ICC_.*"),
    Section("performance monitors", "sys", r"PM.*"),
    Section("debug", "sys", r"DBG.*|MDSCR_EL1|MDCCINT_EL1|OSLSR_EL1|MDCR_EL2"),
    Section("pointer authentication keys", "sys", r"AP..Key.*"),
    Section("firmware", "sys", r"PSCI_VERSION|SMCCC_.*|(STD|VENDOR)_.*BMAP.*"),
    Section("identification", "id", r"(V?MIDR|V?MPIDR|VPIDR|REVIDR|AIDR|ID|MVFR\d|S3_0_C0)_.*"),
    Section("caches", "id", r"CTR_EL0|DCZID_EL0|CLIDR_EL1|CSSELR_EL1|CCSIDR\d+"),
    Section("vectors", "vectors", rf"{VECTORS}|SVE_VLS"),
)  # fmt: skip

PARTS = ("all", *dict.fromkeys(section.part for section in SECTIONS))


def show_registers(vcpu: VcpuRegisters, part: str = "all") -> Iterator[str]:
    """Yield the lines of one vCPU; ``part`` is one of PARTS."""
    yield _headline(vcpu)
    left = dict(vcpu["registers"])
    mine = {section: _take(left, section.pattern) for section in SECTIONS if section.pattern}
    for section in SECTIONS:
        values = mine.get(section, left)
        if values and part in ("all", section.part):
            yield from _RENDERERS.get(section.title, _show_section)(section, values, vcpu)
    yield from _show_errors(vcpu["errors"])


def show_matching(vcpu: VcpuRegisters) -> Iterator[str]:
    """Yield a vCPU's few chosen registers, each in full."""
    yield _headline(vcpu)
    for name, text in vcpu["registers"].items():
        if re.fullmatch(VECTORS, name):
            yield from _vector(name, text)
        else:
            yield from _line(name, text, vcpu)


def _called(name: str, vcpu: VcpuRegisters) -> str:
    """Return a register's name for the guest: in AArch32 many have another one."""
    return vcpu.get("names32", {}).get(name, name)


def _explain(name: str, number: int, vcpu: VcpuRegisters) -> str:
    """Explain a register's fields.  In AArch32 only the processor states have fields here."""
    known = "names32" not in vcpu or name in STATES or name not in vcpu["names32"]
    return explain(name, number) if known else ""


def _headline(vcpu: VcpuRegisters) -> str:
    events = vcpu["events"]
    words = [vcpu["mp_state"]]
    if events["serror_pending"]:
        esr = f" with ESR {events['serror_esr']}" if events["serror_has_esr"] else ""
        words.append(f"SError{esr} is pending")
    if events["ext_dabt_pending"]:
        words.append("external data abort is pending")
    return f"vCPU {vcpu['vcpu']}: {', '.join(words)}"


def _take(registers: dict[str, str], pattern: str) -> dict[str, str]:
    """Remove the registers whose names match, and return them."""
    names = [name for name in registers if re.fullmatch(pattern, name)]
    return {name: registers.pop(name) for name in names}


def _show_section(section: Section, values: Values, vcpu: VcpuRegisters) -> Iterator[str]:
    """Yield registers with fields, then a grid of others, then the names of zero registers."""
    numbers = {name: int(text, 0) for name, text in values.items()}
    first = [name for name in section.always if name in values]
    rest = [name for name in values if name not in first]
    nonzero = [name for name in rest if numbers[name] not in (0, NEVER_WRITTEN)]
    yield section.title
    for name in (*first, *(name for name in nonzero if name in FIELDS)):
        yield from _line(name, values[name], vcpu)
    others = {_called(n, vcpu): values[n] for n in nonzero if n not in FIELDS}
    yield from _grid(_together(others), 2)
    for number, words in ((NEVER_WRITTEN, "never written: "), (0, "zero: ")):
        yield from _names(words, (_called(n, vcpu) for n in rest if numbers[n] == number))


def _line(name: str, text: str, vcpu: VcpuRegisters) -> Iterator[str]:
    number = int(text, 0)
    words = "never written" if number == NEVER_WRITTEN else _explain(name, number, vcpu)
    start = f"{INDENT}{_called(name, vcpu):{NAME}} {text:{VALUE}}  "
    yield from _wrap((start + words).rstrip(), len(start))


def _grid(values: Values, columns: int, name_width: int = NAME) -> Iterator[str]:
    width = max([name_width, *map(len, values)])
    cells = iter(f"{name:{width}} {text:{VALUE}}" for name, text in values.items())
    while row := list(islice(cells, columns)):
        yield f"{INDENT}{INDENT.join(row)}".rstrip()


def _together(values: Values) -> Values:
    """Join numbered registers that have the same value: PMEVCNTR0-30_EL0."""
    return {
        run: text
        for text in dict.fromkeys(values.values())
        for run in _runs(sorted((n for n in values if values[n] == text), key=_in_order))
    }


def _names(start: str, names: Iterable[str]) -> Iterator[str]:
    """Yield a paragraph of names, with runs of numbers joined; skip unnamed registers."""
    shown = list(_runs(sorted((n for n in names if not n.startswith("S3_")), key=_in_order)))
    if shown:
        yield from _wrap(f"{INDENT}{start}{' '.join(shown)}", len(INDENT + start))


def _wrap(line: str, indent: int) -> list[str]:
    return textwrap.wrap(
        line, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    )


def _in_order(name: str) -> tuple[str, int]:
    """Return a sort key: numbered registers are together, in order."""
    match = _NUMBERED.fullmatch(name)
    return (match[1] + match[3], int(match[2])) if match else (name, 0)


def _runs(names: Iterable[str]) -> Iterator[str]:
    """Join Z0 Z1 Z2 to Z0-2."""

    def run_of(item: tuple[int, str]) -> tuple[object, ...]:
        """Return a value that all names of a run share."""
        place, name = item
        match = _NUMBERED.fullmatch(name)
        return (match[1], match[3], int(match[2]) - place) if match else (name,)

    for _, items in groupby(enumerate(names), run_of):
        run = [name for _, name in items]
        last = _NUMBERED.fullmatch(run[-1])
        if last is None or len(run) == 1:
            yield from run
        else:
            yield f"{run[0].removesuffix(last[3])}-{last[2]}{last[3]}"


def _show_errors(errors: Mapping[str, str]) -> Iterator[str]:
    if errors:
        yield "could not be read"
        words = " ".join(f"{name} [{reason}]" for name, reason in errors.items())
        yield from _wrap(INDENT + words, len(INDENT))


def _show_general(section: Section, values: Values, vcpu: VcpuRegisters) -> Iterator[str]:
    yield section.title
    rest = {name: text for name, text in values.items() if name not in GENERAL_REGISTERS}
    state = pstate(int(rest.pop("PSTATE", "0"), 0))
    current = STACK_POINTERS.get(state.M)
    if "PC" in rest:
        yield from _line("PC", rest.pop("PC"), vcpu)
    if "PSTATE" in values:
        yield from _line("PSTATE", values["PSTATE"], vcpu)
    for name, text in rest.items():
        note = " (in use)" if name == current else ""
        yield f"{INDENT}{name:{NAME}} {text}{note}"
    general = {_called(n, vcpu): values[n] for n in GENERAL_REGISTERS if n in values}
    yield from _grid(general, 3 if "names32" in vcpu else 4, 3)


def _show_vectors(section: Section, values: Values, vcpu: VcpuRegisters) -> Iterator[str]:
    """Yield Z, P and FFR, or V: every digit, the most significant byte first."""
    yield f"{section.title}: {_lengths(vcpu)}"
    shown = {name: text for name, text in values.items() if name != "SVE_VLS"}
    for name in sorted(shown, key=_vector_order):
        if int(shown[name], 0):
            yield from _vector(name, shown[name])
    yield from _names("zero: ", (name for name in shown if not int(shown[name], 0)))


def _lengths(vcpu: VcpuRegisters) -> str:
    order = "the most significant byte first"
    if not vcpu["vls"]:
        return f"128 bits each, {order}"
    of = ",".join(map(str, vcpu["vls"]))
    zcr = vcpu["registers"].get("ZCR_EL1")
    chosen = f"; ZCR_EL1.LEN={Zcr(int(zcr, 0)).LEN}" if zcr else ""
    used, shown = vcpu["current_vl"], vcpu["shown_vl"]
    whole = f", shown at {shown}" if shown != used else ""
    return f"VL {used} of {of} bits{chosen}{whole}; {order}"


def _vector_order(name: str) -> tuple[int, int]:
    """Return a sort key: FFR, then P, then Z or V, each by number."""
    number = name.lstrip("ZPVFR")
    return "FPZV".index(name[0]), int(number or 0)


def _vector(name: str, text: str) -> Iterator[str]:
    digits = text.removeprefix("0x")
    groups = [digits[max(end - GROUP, 0) : end] for end in range(len(digits), 0, -GROUP)][::-1]
    if len(groups) > 1 and len(set(groups)) == 1:
        yield f"{INDENT}{name:4} {groups[0]} in each of {len(groups)} doublewords"
        return
    lines = [groups[at : at + GROUPS] for at in range(0, len(groups), GROUPS)]
    for number, line in enumerate(lines):
        yield f"{INDENT}{'' if number else name:4} {' '.join(line)}"


_RENDERERS: dict[str, Callable[[Section, Values, VcpuRegisters], Iterator[str]]] = {
    "general registers": _show_general,
    "vectors": _show_vectors,
}
