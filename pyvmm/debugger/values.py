"""The values of a stopped vCPU's registers, as bytes in the debugger's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyvmm.arm64 import vl as lengths
from pyvmm.arm64.control import Tcr
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.base.records import Record
from pyvmm.debugger.addresses import Cpu
from pyvmm.debugger.features import CPSR, MASKS, SP, VG, Reg
from pyvmm.errors import KvmError, VmmError
from pyvmm.kvm import regs

U32 = 0xFFFF_FFFF
DOUBLEWORD = 64  # bits: VG counts them
BIT_55 = 1 << 55  # selects the half of the addresses; it is never part of a signature
# Any of them: address authentication.  Source: Arm ARM DDI 0487, D23.2 "ID_AA64ISAR1_EL1"
APA_API = 0xFF0
APA3 = 0xF000


class Vectors(Record):
    """A vCPU's vector lengths in bits: all of them, and the one in use; none without SVE."""

    vls: lengths.VlSet
    current: int


def vectors(cpu: Cpu, vls: lengths.VlSet) -> Vectors:
    """Return the vector lengths of a vCPU that has ``vls``, with the one in use."""
    if not vls:
        return Vectors(vls, 0)
    zcrs = {name: cpu.sysreg[name] for name in ("ZCR_EL1", "ZCR_EL2") if name in cpu.sysreg}
    return Vectors(vls, lengths.in_use(vls, {**zcrs, "PSTATE": cpu.get_one_reg(regs.PSTATE)}))


def has_pauth(cpu: Cpu) -> bool:
    """Return whether a vCPU signs addresses."""
    isar1 = cpu.sysreg.get("ID_AA64ISAR1_EL1", 0)
    return bool(isar1 & APA_API or cpu.sysreg.get("ID_AA64ISAR2_EL1", 0) & APA3)


def stack_pointer(cpu: Cpu) -> int:
    """Return the id of the stack pointer in use."""
    mode = Pstate(cpu.get_one_reg(regs.PSTATE)).M
    if mode == Mode.EL1h:
        return regs.SP_EL1
    if mode == Mode.EL2h:
        from pyvmm.arm64 import sysregs

        return regs.lookup("SP_EL2", sysregs.ENCODINGS)
    return regs.SP_EL0


def read(cpu: Cpu, registers: Iterable[Reg], has: Vectors) -> list[bytes | None]:
    """Return the registers' bytes, little-endian; None for one that KVM does not give."""
    chosen = list(registers)
    held = _read_all(cpu, [register.id for register in chosen if register.id])
    return [_bytes(cpu, register, held, has) for register in chosen]


def _read_all(cpu: Cpu, ids: list[int]) -> Mapping[int, int | KvmError]:
    many = getattr(cpu, "get_regs", None)
    if many is not None:
        found: dict[int, int | KvmError] = many(ids)
        return found
    held: dict[int, int | KvmError] = {}
    for reg_id in ids:
        try:
            held[reg_id] = cpu.get_one_reg(reg_id)
        except KvmError as error:
            held[reg_id] = error
    return held


def _bytes(
    cpu: Cpu, register: Reg, held: Mapping[int, int | KvmError], has: Vectors
) -> bytes | None:
    try:
        if register.name == VG:
            value: int | KvmError = has.current // DOUBLEWORD
        elif register.name == SP:
            value = cpu.get_one_reg(stack_pointer(cpu))
        elif register.name in MASKS:
            value = signature_mask(Tcr(cpu.sysreg["TCR_EL1"]), register.name)
        else:
            value = held[register.id]
    except (KvmError, KeyError):  # a saved vCPU may lack it
        return None
    if isinstance(value, KvmError):
        return None
    return (value & _limit(register, has)).to_bytes(register.bits // 8, "little")


def _limit(register: Reg, has: Vectors) -> int:
    """Return a mask of the bits that a vCPU's register has at its present vector length."""
    bits = register.bits
    if register.id in regs.Z_REGISTERS:
        bits = min(bits, has.current)
    elif register.id in regs.P_REGISTERS:
        bits = min(bits, has.current // 8)
    return (1 << bits) - 1


def write(cpu: Cpu, register: Reg, data: bytes, has: Vectors) -> None:
    """Write a register; bits that the debugger does not see stay as they are.

    Raises: VmmError, if KVM refuses, or the register is computed from others.
    """
    value = int.from_bytes(data, "little")
    if register.name == VG or register.name in MASKS:
        if read(cpu, [register], has) != [data]:
            raise VmmError(f"{register.name} follows from other registers")
        return
    reg_id = stack_pointer(cpu) if register.name == SP else register.id
    limit = _limit(register, has)
    if register.name == CPSR:
        limit = U32
    old = cpu.get_one_reg(reg_id)
    cpu.set_one_reg(reg_id, old & ~limit | value & limit)


def signature_mask(tcr: Tcr, name: str) -> int:
    """Return the bits of a pointer that hold its signature, for one of MASKS.

    Source: Arm ARM DDI 0487, D8.10 "Pointer authentication": bits from the address size up, without
    bit 55, and without the top byte if it is ignored.
    """
    is_high, is_data = name.endswith("_high"), "dmask" in name
    size = tcr.T1SZ if is_high else tcr.T0SZ
    ignored = tcr.TBI1 if is_high else tcr.TBI0
    if not is_data and (tcr.TBID1 if is_high else tcr.TBID0):
        ignored = 0
    top = 56 if ignored else 64
    return ((1 << top) - (1 << 64 - min(size, 63))) & ~BIT_55 & (1 << 64) - 1 if size else 0
