"""Explain a syndrome in one line: the cause of the exception."""

from __future__ import annotations

from pyvmm.arm64 import fault, sysregs
from pyvmm.arm64.bits import meaning
from pyvmm.arm64.esr import BrkIss, CallIss, DabtIss, Esr, IabtIss, SysIss, WfxIss

ZERO_REGISTER = 31


def explain_esr(value: int) -> str:
    """Explain the cause of an exception from its ESR_ELx."""
    esr = Esr(value)
    cause = meaning(esr.EC) or f"unallocated exception class {int(esr.EC):#04x}"
    match esr.iss:
        case DabtIss() as iss:
            return f"{cause}: {_data_abort(iss)}"
        case IabtIss() as iss:
            walk = ", in a stage 1 walk" if iss.S1PTW else ""
            return f"{cause}: {fault.explain(iss.IFSC)}{walk}"
        case SysIss() as iss:
            return f"{cause}: {_system_access(iss)}"
        case CallIss() as iss:
            return f"{cause} #{iss.imm16:#x}"
        case BrkIss() as iss:
            return f"{cause} #{iss.Comment:#x}"
        case WfxIss() as iss:
            return f"{cause}: {WfxIss.TI.word(iss)}"
    return cause


def _data_abort(iss: DabtIss) -> str:
    access = "cache maintenance" if iss.CM else "write" if iss.WnR else "read"
    if iss.ISV:
        size = 1 << iss.SAS
        access += f" of {size} byte{'s' if size > 1 else ''} "
        access += f"{'from' if iss.WnR else 'to'} {_register(iss.SRT, iss.SF)}"
    if iss.S1PTW:
        access += ", in a stage 1 walk"
    return f"{access}, {fault.explain(iss.DFSC)}"


def _system_access(iss: SysIss) -> str:
    name = sysregs.NAMES.get(iss.encoding)
    if name is None:
        name = f"S{iss.Op0}_{iss.Op1}_C{iss.CRn}_C{iss.CRm}_{iss.Op2}"
    register = _register(iss.Rt, True)
    return f"MRS {register}, {name}" if iss.Direction else f"MSR {name}, {register}"


def _register(number: int, is_64_bit: int) -> str:
    letter = "X" if is_64_bit else "W"
    return f"{letter}ZR" if number == ZERO_REGISTER else f"{letter}{number}"
