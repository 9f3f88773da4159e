"""KVM_GET_ONE_REG and KVM_SET_ONE_REG: register ids, sizes, slices and values."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

from pyvmm.arm64.idregs import IdAa64Pfr0
from pyvmm.arm64.vl import legal_sets, show
from pyvmm.kvm import ioctls, regs
from pyvmm.kvm.structs import Struct
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.svecheck import ids
from pyvmm.svecheck import promises as doc
from pyvmm.svecheck.bench import PLAIN, Bench, Skip, alike, each, outcome, values
from pyvmm.svecheck.case import case

SIZES = {"U32": regs.U32, "U64": regs.U64, "U128": regs.U128, "U256": regs.U256,
         "U512": regs.U512, "U1024": regs.U1024, "U2048": regs.U2048}  # fmt: skip
SIZE_MASK = 0xF << 52
VECTOR, PREDICATE = ("U2048", "U256")
NUMBERS_WITHOUT_A_REGISTER = (0x620, 0x640, 0x7FF, 0x800, 0xFFE0, 0xFFFE)
RAZ_WI = "read as zero, ignore writes"
KEPT = "kept up to the length, zero beyond"
SEED = 4  # of the random values: arbitrary but fixed

# Ioctls that arm64 KVM refuses.  Source: linux/kvm.h
GET_REGS = ioctls.Ioctl("KVM_GET_REGS", 0x81, "r", Struct("struct kvm_regs", "u8 regs[864]"))
GET_FPU = ioctls.Ioctl("KVM_GET_FPU", 0x8C, "r", Struct("struct kvm_fpu", ""))


def _sized(registers: Mapping[str, int], right: str) -> dict[str, int]:
    """Return the ids with every size except the right one."""
    return {
        f"{name} as {size}": reg & ~SIZE_MASK | bits
        for name, reg in registers.items()
        for size, bits in SIZES.items()
        if size != right
    }


def _access(vcpu: Vcpu, registers: Mapping[str, int]) -> str:
    """Read and write all registers, and return the outcome."""
    calls: dict[str, Callable[[], object]] = {}
    for name, reg in registers.items():
        calls[f"GET {name}"] = partial(vcpu.get_one_reg, reg)
        calls[f"SET {name}"] = partial(vcpu.set_one_reg, reg, 0)
    return each(calls)


# Ids
@case(doc.SVE_IDS, "ok")
def ids_of_slice_0(bench: Bench) -> str:
    """Read and write Z0-Z31, P0-P15 and FFR by their ids"""
    return _access(bench.final(), ids.Z_P_FFR)


@case(doc.BAD_ID, "EINVAL")
def z_of_another_size(bench: Bench) -> str:
    """Access Z0 to Z31 with every size but 2048 bits"""
    return _access(bench.final(), _sized(ids.Z, VECTOR))


@case(doc.BAD_ID, "EINVAL")
def p_and_ffr_of_another_size(bench: Bench) -> str:
    """Access P0 to P15 and FFR with every size but 256 bits"""
    return _access(bench.final(), _sized(ids.P_FFR, PREDICATE))


@case(doc.BAD_ID, "EINVAL")
def set_of_another_size(bench: Bench) -> str:
    """Access KVM_REG_ARM64_SVE_VLS with every size but 512 bits"""
    return _access(bench.final(), _sized(ids.VLS, "U512"))


@case(doc.BAD_ID, "EINVAL")
def numbers_without_a_register(bench: Bench) -> str:
    """Access numbers of the SVE group that name no register, with SVE's three sizes"""
    nothing = {
        f"{number:#x} as {size}": regs.ARM64 | SIZES[size] | regs.SVE | number
        for number in NUMBERS_WITHOUT_A_REGISTER
        for size in ("U256", "U512", "U2048")
    }
    return _access(bench.final(), nothing)


@case(doc.BAD_ID, "EINVAL")
def core_registers_of_another_size(bench: Bench) -> str:
    """Access X0 and PC with 32 bits"""
    core = {name: ids.CORE[name] & ~SIZE_MASK | regs.U32 for name in ("X0", "PC")}
    return _access(bench.final(), core)


@case(doc.BAD_ID, "EINVAL")
def v_of_another_size(bench: Bench) -> str:
    """Access V0 with 64 bits, on a vCPU without SVE"""
    return _access(bench.vcpu(PLAIN), {"V0": ids.V["V0"] & ~SIZE_MASK | regs.U64})


@case(doc.NO_KVM_REGS, "EINVAL")
def all_at_once(bench: Bench) -> str:
    """Call KVM_GET_REGS and KVM_GET_FPU"""
    vcpu = bench.final()
    return each({io.name: partial(io.read, vcpu.fd) for io in (GET_REGS, GET_FPU)})


# Slices
FEW = {
    name: reg
    for name, reg in ids.SURPLUS.items()
    if name.partition("[")[0] in ("Z0", "Z31", "P0", "P15", "FFR")
    and name.endswith(("[1]", "[31]"))
}


@case(doc.SLICES, "ENOENT")
def slices_beyond_each_length(bench: Bench) -> str:
    """Access slices 1 and 31 of Z0, Z31, P0, P15 and FFR with each set of lengths"""
    return alike({show(vls): _access(bench.final(vls), FEW) for vls in legal_sets(bench.host.vls)})


@case(doc.SEED_RAZ_WI, RAZ_WI, doc.NEVER_RAZ_WI)
def surplus_slices_as_the_series_had_them(bench: Bench) -> str:
    """Access slices 1 and 31 of these registers: 2048 bits need only slice 0"""
    vcpu = bench.final()
    got = _access(vcpu, FEW)
    if got != "ok":
        return got
    for reg in FEW.values():
        vcpu.set_one_reg(reg, (1 << 8 * regs.size(reg)) - 1)
    return RAZ_WI if values(vcpu, FEW) == "0x0" else "keep what is written"


# Values
@case(doc.REG_VALUES, KEPT)
def values_come_back(bench: Bench) -> str:
    """Write all 2048 or 256 bits of every register, and read them, with each set of lengths"""
    outcomes = {}
    for vls in legal_sets(bench.host.vls):
        outcomes[show(vls)] = _write_all(bench.final(vls), max(vls))
    return alike(outcomes)


def _write_all(vcpu: Vcpu, length: int) -> str:
    chance = random.Random(SEED)
    written = {
        name: chance.getrandbits(8 * regs.size(reg) - 1) | 1 << 8 * regs.size(reg) - 1
        for name, reg in ids.Z_P_FFR.items()
    }
    for name, value in written.items():
        vcpu.set_one_reg(ids.Z_P_FFR[name], value)
    wrong = []
    for name, value in written.items():
        bits = length if name in ids.Z else length // 8
        if vcpu.get_one_reg(ids.Z_P_FFR[name]) != value & (1 << bits) - 1:
            wrong.append(name)
    return f"wrong: {' '.join(wrong)}" if wrong else KEPT


@case(doc.FFR_VALUES, "0x5")
def ffr_that_no_instruction_makes(bench: Bench) -> str:
    """Write 0x05 to FFR, a value that no instruction makes, and read it"""
    vcpu = bench.final()
    vcpu.set_one_reg(regs.FFR(), 5)
    return f"{vcpu.get_one_reg(regs.FFR()):#x}"


@case(doc.SYSREGS, "0xffff")
def zcr_with_reserved_bits(bench: Bench) -> str:
    """Write 0xffff to ZCR_EL1, read it"""
    vcpu = bench.final()
    vcpu.set_one_reg(ids.ZCR_EL1, 0xFFFF)
    return f"{vcpu.get_one_reg(ids.ZCR_EL1):#x}"


# ID registers
@case(doc.PFR0, "1")
def pfr0_with_sve(bench: Bench) -> str:
    """Read ID_AA64PFR0_EL1.SVE of a vCPU with SVE"""
    return str(int(IdAa64Pfr0(bench.final().get_one_reg(ids.ID_AA64PFR0_EL1)).SVE))


@case(doc.PFR0, "0")
def pfr0_without_sve(bench: Bench) -> str:
    """Read ID_AA64PFR0_EL1.SVE of a vCPU without SVE"""
    return str(int(IdAa64Pfr0(bench.vcpu(PLAIN).get_one_reg(ids.ID_AA64PFR0_EL1)).SVE))


@case(doc.ZFR0, "0x0")
def zfr0_without_sve(bench: Bench) -> str:
    """Read ID_AA64ZFR0_EL1 of a vCPU without SVE"""
    return values(bench.vcpu(PLAIN), {"ID_AA64ZFR0_EL1": ids.ID_AA64ZFR0_EL1})


@case(doc.ID_OPT_OUT, "EINVAL")
def pfr0_cannot_disown_sve(bench: Bench) -> str:
    """Write ID_AA64PFR0_EL1 with SVE 0 to a vCPU with SVE, and with 1 to one without"""
    return alike({"off": _set_sve(bench.final(), 0), "on": _set_sve(bench.vcpu(PLAIN), 1)})


def _set_sve(vcpu: Vcpu, value: int) -> str:
    pfr0 = IdAa64Pfr0(vcpu.get_one_reg(ids.ID_AA64PFR0_EL1)).replace(SVE=value)
    return outcome(lambda: vcpu.set_one_reg(ids.ID_AA64PFR0_EL1, int(pfr0)))


@case(doc.ID_OPT_OUT, "ok", doc.ZFR0_FIXED)
def zfr0_can_be_cut_down(bench: Bench) -> str:
    """Write 0 to ID_AA64ZFR0_EL1 of a vCPU with SVE"""
    vcpu = bench.final()
    if not vcpu.get_one_reg(ids.ID_AA64ZFR0_EL1):
        raise Skip("needs a host with SVE2: without it the register is zero")
    return outcome(lambda: vcpu.set_one_reg(ids.ID_AA64ZFR0_EL1, 0))


@case(doc.ZFR0, "EINVAL")
def zfr0_cannot_be_invented(bench: Bench) -> str:
    """Write 1 to ID_AA64ZFR0_EL1 of a vCPU without SVE"""
    return outcome(lambda: bench.vcpu(PLAIN).set_one_reg(ids.ID_AA64ZFR0_EL1, 1))


@case(doc.ZFR0, "the same")
def zfr0_does_not_depend_on_the_set(bench: Bench) -> str:
    """Read ID_AA64ZFR0_EL1 and ID_AA64PFR0_EL1 with each set of lengths"""
    registers = {name: ids.SYSREGS[name] for name in ("ID_AA64PFR0_EL1", "ID_AA64ZFR0_EL1")}
    found = {values(bench.final(vls), registers) for vls in legal_sets(bench.host.vls)}
    return "the same" if len(found) == 1 else "; ".join(sorted(found))
