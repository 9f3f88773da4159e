"""The cause of an exception: ESR_ELx, and its syndrome (ISS) for each exception class.

Classes have the names of Linux, arch/arm64/include/asm/esr.h; fields have Arm's.
Source: Arm ARM DDI 0487, D23.2 "ESR_EL1, Exception Syndrome Register (EL1)".
"""

from __future__ import annotations

from pyvmm.arm64 import fault, sysregs
from pyvmm.arm64.bits import Bits, Named, bit, bits, meaning, names
from pyvmm.arm64.fault import FaultStatus

ZERO_REGISTER = 31

_DIRECTION = names("WRITE", "READ")


class Conditional(Bits):
    """The condition of a trapped instruction; in AArch64 always true."""

    CV = bit(24, "COND is valid")
    COND = bits(23, 20, "condition")


class WfxIss(Conditional):
    """A trapped wait."""

    RN = bits(9, 5, "register with the timeout")
    RV = bit(2, "RN is valid")
    TI = bits(1, 0, "instruction", names("WFI", "WFE", "WFIT", "WFET"))


class McrIss(Conditional):
    """A trapped MCR or MRC."""

    Opc2 = bits(19, 17, "opc2")
    Opc1 = bits(16, 14, "opc1")
    CRn = bits(13, 10, "CRn")
    Rt = bits(9, 5, "register")
    CRm = bits(4, 1, "CRm")
    Direction = bit(0, "which way", _DIRECTION)


class McrrIss(Conditional):
    """A trapped MCRR or MRRC."""

    Opc1 = bits(19, 16, "opc1")
    Rt2 = bits(14, 10, "second register")
    Rt = bits(9, 5, "register")
    CRm = bits(4, 1, "CRm")
    Direction = bit(0, "which way", _DIRECTION)


class LdcIss(Conditional):
    """A trapped LDC or STC."""

    imm8 = bits(19, 12, "offset")
    Rn = bits(9, 5, "base register")
    Offset = bit(4, "the offset is added")
    AM = bits(3, 1, "addressing mode")
    Direction = bit(0, "which way", _DIRECTION)


class CallIss(Bits):
    """SVC, HVC or SMC."""

    imm16 = bits(15, 0, "the instruction's number")


class Smc32Iss(Conditional):
    """SMC in AArch32."""

    CCKNOWNPASS = bit(19, "the condition was met")


class BrkIss(Bits):
    """BRK or BKPT."""

    Comment = bits(15, 0, "the instruction's number")


class SysIss(Bits):
    """A trapped MSR, MRS or system instruction."""

    Op0 = bits(21, 20, "op0")
    Op2 = bits(19, 17, "op2")
    Op1 = bits(16, 14, "op1")
    CRn = bits(13, 10, "CRn")
    Rt = bits(9, 5, "register")
    CRm = bits(4, 1, "CRm")
    Direction = bit(0, "which way", _DIRECTION)

    @property
    def encoding(self) -> int:
        """The register's number in sysregs.NAMES."""
        return self.Op0 << 14 | self.Op1 << 11 | self.CRn << 7 | self.CRm << 3 | self.Op2


class OtherIss(Bits):
    """A trapped 64-byte load or store, or buffer synchronization."""

    Which = bits(
        24, 0, "instruction", names("ST64BV", "ST64BV0", "LDST64B", "TSBCSYNC", "PSBCSYNC")
    )


class EretIss(Bits):
    """A trapped ERET."""

    ERET = bit(1, "with pointer authentication")
    ERETA = bit(0, "by key B")


class BtiIss(Bits):
    """A branch to an instruction that is not a branch target."""

    BTYPE = bits(1, 0, "branch type")


class FpacIss(Bits):
    """A failed pointer authentication."""

    IorD = bit(1, "key", names("INSTRUCTION", "DATA"))
    AorB = bit(0, "key", names("A", "B"))


class SmeIss(Bits):
    """A trapped SME instruction."""

    SMTC = bits(
        2, 0, "cause", names("SME_DISABLED", "ILL", "SM_DISABLED", "ZA_DISABLED", "ZT_DISABLED")
    )


class GpcIss(Bits):
    """A granule protection check."""

    S2PTW = bit(21, "in the stage 2 walk")
    InD = bit(20, "an instruction fetch")
    GPCSC = bits(19, 14, "cause")
    VNCR = bit(13, "by VNCR_EL2")
    CM = bit(8, "cache maintenance")
    S1PTW = bit(7, "in the stage 1 walk")
    WnR = bit(6, "a write")
    xFSC = bits(5, 0, "fault", FaultStatus)


class IabtIss(Bits):
    """An instruction abort."""

    PFV = bit(14, "PFAR is valid")
    SET = bits(12, 11, "synchronous error type", names(UC=2, UEO=3))
    FnV = bit(10, "FAR is not valid")
    EA = bit(9, "external abort type")
    S1PTW = bit(7, "stage 2 fault in a stage 1 walk")
    IFSC = bits(5, 0, "fault", FaultStatus)


class DabtIss(Bits):
    """A data abort."""

    ISV = bit(24, "SAS to AR are valid")
    SAS = bits(23, 22, "access size", names("BYTE", "HALFWORD", "WORD", "DOUBLEWORD"))
    SSE = bit(21, "sign extended")
    SRT = bits(20, 16, "register")
    SF = bit(15, "64-bit register")
    AR = bit(14, "acquire or release")
    VNCR = bit(13, "by VNCR_EL2")
    SET = bits(12, 11, "synchronous error type", names(UC=2, UEO=3))
    FnV = bit(10, "FAR is not valid")
    EA = bit(9, "external abort type")
    CM = bit(8, "cache maintenance or translation")
    S1PTW = bit(7, "stage 2 fault in a stage 1 walk")
    WnR = bit(6, "a write")
    DFSC = bits(5, 0, "fault", FaultStatus)


class MopsIss(Bits):
    """Memory copy or set."""

    MemInst = bit(24, "a set")
    isSETG = bit(23, "a set with tags")
    Options = bits(22, 19, "options")
    FromEpilogue = bit(18, "in the epilogue")
    WrongOption = bit(17, "the option is wrong")
    OptionA = bit(16, "option A")
    Destreg = bits(14, 10, "destination register")
    Srcreg = bits(9, 5, "source register")
    Sizereg = bits(4, 0, "size register")


class FpExcIss(Bits):
    """A floating-point exception."""

    TFV = bit(23, "the flags are valid")
    VECITR = bits(10, 8, "vector iterations")
    IDF = bit(7, "input denormal")
    IXF = bit(4, "inexact")
    UFF = bit(3, "underflow")
    OFF = bit(2, "overflow")
    DZF = bit(1, "division by zero")
    IOF = bit(0, "invalid operation")


_GCS_INSTRUCTION = names(
    "RET", "GCSPOPM", "RET_KEYA", "RET_KEYB", "GCSSS1", "GCSSS2", "GCSPOPCX", "GCSPOPX"
)


class GcsIss(Bits):
    """A guarded control stack exception."""

    ExType = bits(23, 20, "cause", names("DATA_CHECK", "EXLOCK", "STR"))
    Raddr = bits(14, 10, "address register")
    Rn = bits(9, 5, "data register")
    IT = bits(4, 0, "instruction", _GCS_INSTRUCTION)


class SerrorIss(Bits):
    """An SError."""

    IDS = bit(24, "the rest is IMPLEMENTATION DEFINED")
    IESB = bit(13, "taken at an implicit error synchronization")
    AET = bits(12, 10, "error type", names("UC", "UEU", "UEO", "UER", CE=6))
    EA = bit(9, "external abort type")
    DFSC = bits(5, 0, "fault; 0x11 is an asynchronous SError")


class StatusIss(Bits):
    """A breakpoint."""

    IFSC = bits(5, 0, "0x22 is debug")


class StepIss(Bits):
    """A software step."""

    ISV = bit(24, "EX is valid")
    EX = bit(6, "a load-exclusive was stepped")
    IFSC = bits(5, 0, "0x22 is debug")


class WatchIss(Bits):
    """A watchpoint."""

    WPT = bits(23, 18, "watchpoint number")
    WPTV = bit(17, "WPT is valid")
    WPF = bit(16, "possibly no watchpoint matched")
    FnP = bit(15, "FAR is not precise")
    VNCR = bit(13, "by VNCR_EL2")
    FnV = bit(10, "FAR is not valid")
    CM = bit(8, "cache maintenance")
    WnR = bit(6, "a write")
    DFSC = bits(5, 0, "0x22 is debug")


class ExceptionClass(Named):
    """The values of ESR_ELx.EC, each with the layout of its syndrome.

    LOW is from a lower exception level, CUR from the current one.
    """

    layout: type[Bits] | None

    def __init__(self, number: int, meaning: str, layout: type[Bits] | None = None) -> None:
        super().__init__(number, meaning)
        self.layout = layout

    UNKNOWN = 0x00, "unknown reason, as for an undefined instruction"
    WFx = 0x01, "trapped wait", WfxIss
    CP15_32 = 0x03, "trapped MCR or MRC of cp15", McrIss
    CP15_64 = 0x04, "trapped MCRR or MRRC of cp15", McrrIss
    CP14_MR = 0x05, "trapped MCR or MRC of cp14", McrIss
    CP14_LS = 0x06, "trapped LDC or STC of cp14", LdcIss
    FP_ASIMD = 0x07, "trapped floating point, Advanced SIMD or SVE", Conditional
    CP10_ID = 0x08, "trapped VMRS of cp10", McrIss
    PAC = 0x09, "trapped pointer authentication"
    OTHER = 0x0A, "trapped 64-byte load or store, or buffer synchronization", OtherIss
    CP14_64 = 0x0C, "trapped MRRC of cp14", McrrIss
    BTI = 0x0D, "branch to an instruction that is not a branch target", BtiIss
    ILL = 0x0E, "illegal execution state"
    SVC32 = 0x11, "SVC in AArch32", CallIss
    HVC32 = 0x12, "HVC in AArch32", CallIss
    SMC32 = 0x13, "SMC in AArch32", Smc32Iss
    SYS128 = 0x14, "trapped MSRR, MRRS or 128-bit system instruction"  # not named in Linux
    SVC64 = 0x15, "SVC", CallIss
    HVC64 = 0x16, "HVC", CallIss
    SMC64 = 0x17, "SMC", CallIss
    SYS64 = 0x18, "trapped MSR, MRS or system instruction", SysIss
    SVE = 0x19, "trapped SVE"
    ERET = 0x1A, "trapped ERET", EretIss
    FPAC = 0x1C, "failed pointer authentication", FpacIss
    SME = 0x1D, "trapped SME", SmeIss
    GPC = 0x1E, "granule protection check", GpcIss  # not named in Linux
    IMP_DEF = 0x1F, "IMPLEMENTATION DEFINED exception to EL3"
    IABT_LOW = 0x20, "instruction abort, from a lower exception level", IabtIss
    IABT_CUR = 0x21, "instruction abort, from the same exception level", IabtIss
    PC_ALIGN = 0x22, "PC is not aligned"
    DABT_LOW = 0x24, "data abort, from a lower exception level", DabtIss
    DABT_CUR = 0x25, "data abort, from the same exception level", DabtIss
    SP_ALIGN = 0x26, "SP is not aligned"
    MOPS = 0x27, "memory copy or set in a state that it cannot resume from", MopsIss
    FP_EXC32 = 0x28, "floating-point exception in AArch32", FpExcIss
    FP_EXC64 = 0x2C, "floating-point exception", FpExcIss
    GCS = 0x2D, "guarded control stack", GcsIss
    SERROR = 0x2F, "SError", SerrorIss
    BREAKPT_LOW = 0x30, "breakpoint, from a lower exception level", StatusIss
    BREAKPT_CUR = 0x31, "breakpoint, from the same exception level", StatusIss
    SOFTSTP_LOW = 0x32, "software step, from a lower exception level", StepIss
    SOFTSTP_CUR = 0x33, "software step, from the same exception level", StepIss
    WATCHPT_LOW = 0x34, "watchpoint, from a lower exception level", WatchIss
    WATCHPT_CUR = 0x35, "watchpoint, from the same exception level", WatchIss
    BKPT32 = 0x38, "BKPT in AArch32", BrkIss
    VECTOR32 = 0x3A, "vector catch in AArch32"
    BRK64 = 0x3C, "BRK", BrkIss
    PROFILING = 0x3D, "profiling exception"  # not named in Linux


class Esr(Bits, registers="ESR_EL1 ESR_EL2"):
    """The cause of an exception."""

    ISS2 = bits(55, 32, "more syndrome")
    EC = bits(31, 26, "exception class", ExceptionClass)
    IL = bit(25, "the instruction was 32 bits long")
    ISS = bits(24, 0, "syndrome, whose meaning depends on EC")

    @property
    def iss(self) -> Bits | None:
        """The decoded syndrome; None for a class without one."""
        cause = self.EC
        layout = cause.layout if isinstance(cause, ExceptionClass) else None
        return layout(self.ISS) if layout else None


def explain_esr(value: int) -> str:
    """Explain the cause of an exception in one line, from its ESR_ELx."""
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
