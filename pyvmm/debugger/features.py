"""The target description: which registers a vCPU has, for gdb and lldb.

Source: the gdb manual, appendix G "Target Descriptions", "AArch64 Features".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from pyvmm.arm64 import sysregs
from pyvmm.base.records import Record
from pyvmm.kvm import regs

CORE = "org.gnu.gdb.aarch64.core"
FPU = "org.gnu.gdb.aarch64.fpu"
SVE = "org.gnu.gdb.aarch64.sve"
PAUTH = "org.gnu.gdb.aarch64.pauth_v2"
SYSTEM = "org.pyvmm.aarch64.system"
IN_G = (CORE, FPU, SVE)  # the features whose registers the packet g has; others are read one by one

# Registers that are not one register of KVM
SP, CPSR, VG = "sp", "cpsr", "vg"
MASKS = ("pauth_dmask", "pauth_cmask", "pauth_dmask_high", "pauth_cmask_high")

VECTORS = ("svev", "svep", "aarch64v")  # types of vector registers
# Attributes that lldb understands, and gdb ignores
LLDB_VECTOR = ' encoding="vector" format="vector-uint8"'
LLDB_GENERIC = {"pc": "pc", "sp": "sp", "x29": "fp", "x30": "ra", "cpsr": "flags"}

# Arm's names of the timers, whose ids have other encodings
_TIMERS = {reg_id: name for name, reg_id in regs.TIMERS.items()}
_GROUPS = (regs.SYSREG, regs.DEMUX)
# KVM has these in the core group; debuggers get them with the system registers
_CORE_SYSTEM = (
    "SP_EL0", "SP_EL1", "ELR_EL1", "SPSR_EL1", "SPSR_ABT", "SPSR_UND", "SPSR_IRQ", "SPSR_FIQ",
)  # fmt: skip
_LANES = ((64, "d", "ieee_double"), (32, "s", "ieee_single"), (16, "h", "ieee_half"), (8, "b", ""))


class Reg(Record):
    """A register as a debugger sees it; ``id`` is KVM's, 0 if it is none of KVM's."""

    name: str
    bits: int
    kind: str  # its type in the description
    feature: str
    id: int = 0


def layout(reg_list: Iterable[int], vl: int, has_pauth: bool) -> list[Reg]:
    """Return the registers by number.

    ``reg_list`` is a vCPU's KVM_GET_REG_LIST, ``vl`` its vector length in bits, 0 without SVE.
    """
    found = [Reg(f"x{n}", 64, "uint64", CORE, regs.X(n)) for n in range(31)]
    found += [
        Reg(SP, 64, "data_ptr", CORE),
        Reg("pc", 64, "code_ptr", CORE, regs.PC),
        Reg(CPSR, 32, "uint32", CORE, regs.PSTATE),
    ]
    feature = SVE if vl else FPU
    if vl:
        found += [Reg(f"z{n}", vl, "svev", feature, regs.Z(n)) for n in range(32)]
    else:
        found += [Reg(f"v{n}", 128, "aarch64v", feature, regs.V(n)) for n in range(32)]
    found += [
        Reg("fpsr", 32, "uint32", feature, regs.FPSR),
        Reg("fpcr", 32, "uint32", feature, regs.FPCR),
    ]
    if vl:
        found += [Reg(f"p{n}", vl // 8, "svep", feature, regs.P(n)) for n in range(16)]
        found += [Reg("ffr", vl // 8, "svep", feature, regs.FFR()), Reg(VG, 64, "uint64", feature)]
    if has_pauth:
        found += [Reg(name, 64, "uint64", PAUTH) for name in MASKS]
    return [*found, *_system(reg_list)]


def resized(register: Reg, vl: int) -> Reg:
    """Return a register as it is at another vector length, in bits."""
    if register.feature != SVE or register.kind not in VECTORS:
        return register
    return register.replace(bits=vl if register.kind == "svev" else vl // 8)


def _system(reg_list: Iterable[int]) -> Iterator[Reg]:
    fixed = regs.fixed()
    for name in _CORE_SYSTEM:
        yield Reg(name, 64, "uint64", SYSTEM, fixed[name])
    for reg_id in reg_list:
        if regs.group(reg_id) in _GROUPS:
            name = _TIMERS.get(reg_id) or regs.name(reg_id, sysregs.NAMES)
            bits = 8 * regs.size(reg_id)
            yield Reg(name, bits, f"uint{bits}", SYSTEM, reg_id)


def describe(registers: Sequence[Reg]) -> str:
    """Return the target description of registers, as XML."""
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        '<target version="1.0"><architecture>aarch64</architecture>',
    ]
    number = 0
    for feature, members in groupby(registers, key=lambda register: register.feature):
        lines.append(f'<feature name="{feature}">')
        here = list(members)
        lines += _types(here)
        for register in here:
            more = ' group="system" save-restore="no"' if feature == SYSTEM else ""
            if register.kind in VECTORS:
                more = LLDB_VECTOR
            elif register.name in LLDB_GENERIC:
                more = f' generic="{LLDB_GENERIC[register.name]}"'
            lines.append(
                f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}" '
                f'regnum="{number}"{more}/>'
            )
            number += 1
        lines.append("</feature>")
    return "\n".join([*lines, "</target>"])


def _types(registers: Sequence[Reg]) -> Iterator[str]:
    """Yield the types of a feature's vector registers."""
    for kind in dict.fromkeys(register.kind for register in registers):
        bits = next(register.bits for register in registers if register.kind == kind)
        if kind == "svep":
            yield f'<vector id="svep" type="uint8" count="{bits // 8}"/>'
        elif kind in VECTORS:
            yield from _vector(kind, bits)


def _vector(kind: str, bits: int) -> Iterator[str]:
    """Yield a union of the lanes of each size: value.d.u[0], value.s.f[3], value.q.u[0]."""
    fields = []
    for size, letter, floating in ((128, "q", ""), *_LANES):
        types = {"u": f"uint{size}", "s": f"int{size}", "f": floating}
        for how, element in types.items():
            if element:
                yield f'<vector id="{kind}{letter}{how}" type="{element}" count="{bits // size}"/>'
        yield f'<union id="{kind}{letter}">'
        for how, element in types.items():
            if element:
                yield f'<field name="{how}" type="{kind}{letter}{how}"/>'
        yield "</union>"
        fields.append(f'<field name="{letter}" type="{kind}{letter}"/>')
    yield f'<union id="{kind}">{"".join(fields)}</union>'
