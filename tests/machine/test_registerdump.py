"""A vCPU's registers as JSON, compared with written values and with the host's."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from pyvmm import layout
from pyvmm.arm64 import sysregs
from pyvmm.arm64.cpuid import Ctr, line_bytes
from pyvmm.arm64.fields import decode
from pyvmm.config import Config, SveRequest
from pyvmm.errors import KvmError
from pyvmm.kvm import regs, sve
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import MpState, VcpuFeature
from pyvmm.kvm.vcpu import Vcpu, VcpuEvents
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from pyvmm.machine.registerdump import VcpuRegisters, read_registers
from tests import programs
from tests.kvm.guest import guest

NO_SVE: frozenset[int] = frozenset()
PSCI, SVE = VcpuFeature.PSCI_0_2, VcpuFeature.SVE
MIDR = Path("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
CPUINFO = Path("/proc/cpuinfo")
SC_LEVEL1_ICACHE_LINESIZE, SC_LEVEL1_DCACHE_LINESIZE = 187, 190  # bits/confname.h of glibc

# A feature's name in /proc/cpuinfo, and the least value of the field that stands for it.
# Source: Linux, Documentation/arch/arm64/elf_hwcaps.rst
HWCAPS = """
    aes         ID_AA64ISAR0_EL1.AES        1
    pmull       ID_AA64ISAR0_EL1.AES        2
    sha1        ID_AA64ISAR0_EL1.SHA1       1
    sha2        ID_AA64ISAR0_EL1.SHA2       1
    sha512      ID_AA64ISAR0_EL1.SHA2       2
    crc32       ID_AA64ISAR0_EL1.CRC32      1
    atomics     ID_AA64ISAR0_EL1.ATOMIC     2
    asimdrdm    ID_AA64ISAR0_EL1.RDM        1
    sha3        ID_AA64ISAR0_EL1.SHA3       1
    sm3         ID_AA64ISAR0_EL1.SM3        1
    sm4         ID_AA64ISAR0_EL1.SM4        1
    asimddp     ID_AA64ISAR0_EL1.DP         1
    asimdfhm    ID_AA64ISAR0_EL1.FHM        1
    flagm       ID_AA64ISAR0_EL1.TS         1
    flagm2      ID_AA64ISAR0_EL1.TS         2
    rng         ID_AA64ISAR0_EL1.RNDR       1
    jscvt       ID_AA64ISAR1_EL1.JSCVT      1
    fcma        ID_AA64ISAR1_EL1.FCMA       1
    lrcpc       ID_AA64ISAR1_EL1.LRCPC      1
    ilrcpc      ID_AA64ISAR1_EL1.LRCPC      2
    dcpop       ID_AA64ISAR1_EL1.DPB        1
    dcpodp      ID_AA64ISAR1_EL1.DPB        2
    sb          ID_AA64ISAR1_EL1.SB         1
    frint       ID_AA64ISAR1_EL1.FRINTTS    1
    i8mm        ID_AA64ISAR1_EL1.I8MM       1
    bf16        ID_AA64ISAR1_EL1.BF16       1
    dgh         ID_AA64ISAR1_EL1.DGH        1
    sve         ID_AA64PFR0_EL1.SVE         1
    dit         ID_AA64PFR0_EL1.DIT         1
    bti         ID_AA64PFR1_EL1.BT          1
    uscat       ID_AA64MMFR2_EL1.AT         1
    sve2        ID_AA64ZFR0_EL1.SVEver      1
    sveaes      ID_AA64ZFR0_EL1.AES         1
    svepmull    ID_AA64ZFR0_EL1.AES         2
    svebitperm  ID_AA64ZFR0_EL1.BitPerm     1
    svesha3     ID_AA64ZFR0_EL1.SHA3        1
    svesm4      ID_AA64ZFR0_EL1.SM4         1
    svei8mm     ID_AA64ZFR0_EL1.I8MM        1
    svef32mm    ID_AA64ZFR0_EL1.F32MM       1
    svef64mm    ID_AA64ZFR0_EL1.F64MM       1
    svebf16     ID_AA64ZFR0_EL1.BF16        1
"""


class Parked:
    """A vCPU with three registers, one of which KVM refuses to read."""

    id = 3
    values = {regs.X(0): 0xFFFF_FFFF_FFFF_FFFF, regs.FPSR: 8}  # noqa: RUF012 - never changed

    def get_reg_list(self) -> list[int]:
        return [regs.X(0), regs.PC, regs.FPSR]

    def get_one_reg(self, reg_id: int) -> int:
        if reg_id not in self.values:
            raise KvmError("KVM_GET_ONE_REG", regs.name(reg_id), errno.ENOENT)
        return self.values[reg_id]

    def get_mp_state(self) -> int:
        return MpState.SUSPENDED

    def get_vcpu_events(self) -> VcpuEvents:
        return VcpuEvents(serror_pending=True, serror_has_esr=True, serror_esr=0x41)


def value(read: VcpuRegisters, name: str) -> int:
    return int(read["registers"][name], 16)


def test_unreadable_register_has_its_errno_and_the_others_are_read() -> None:
    read = read_registers(cast(Vcpu, Parked()), NO_SVE)

    assert read == {
        "vcpu": 3,
        "mp_state": "SUSPENDED",
        "events": {
            "serror_pending": True,
            "serror_has_esr": True,
            "serror_esr": "0x0000000000000041",
            "ext_dabt_pending": False,
        },
        "vls": [],
        "current_vl": 0,
        "shown_vl": 0,
        "registers": {"X0": "0xffffffffffffffff", "FPSR": "0x00000008"},
        "errors": {"PC": "ENOENT"},
    }


@pytest.mark.kvm
def test_every_register_kvm_lists_is_read_and_survives_json() -> None:
    with guest("spin") as made:
        read = read_registers(made.vcpu, NO_SVE)
        listed = {regs.name(reg_id, sysregs.NAMES) for reg_id in made.vcpu.get_reg_list()}

    assert read["registers"].keys() | read["errors"].keys() == listed
    assert read["errors"] == {}
    assert json.loads(json.dumps(read)) == read


@pytest.mark.kvm
def test_values_are_read_under_their_names_after_a_write() -> None:
    chosen = {
        **{f"X{number}": 0x1111_1111_1111_1111 * number & (1 << 64) - 1 for number in range(31)},
        **{f"V{number}": (number << 120) + 7 * number for number in range(32)},
        "PC": 0xFFFF_8000_0000_1000,
        "SP_EL0": 0x10,
        "SP_EL1": 0xFFFF_FFFF_FFFF_FFF0,
        "PSTATE": 0x6000_03C5,
        "ESR_EL1": 0x9600_0045,
        "FAR_EL1": 0xDEAD_BEEF_0000_0000,
        "ELR_EL1": 0xFFFF_8000_0000_2000,
        "SPSR_EL1": 0x3C5,
        "VBAR_EL1": 0xFFFF_8000_0000_0800,
        "TPIDR_EL0": 0x0123_4567_89AB_CDEF,
        "TPIDRRO_EL0": 1 << 63,
        "FPCR": 0x0300_0000,
        "FPSR": 0x0800_001F,
    }  # fmt: skip
    with guest("spin") as made:
        for name, number in chosen.items():
            made.vcpu.set_one_reg(regs.lookup(name, sysregs.ENCODINGS), number)

        read = read_registers(made.vcpu, NO_SVE)

    assert {name: value(read, name) for name in chosen} == chosen
    assert (len(read["registers"]["V3"]), len(read["registers"]["FPCR"])) == (34, 10)


@pytest.mark.kvm
def test_dump_contains_mp_state_and_events() -> None:
    with guest("spin", vcpus=2) as made:
        made.vcpus[1].set_vcpu_events(VcpuEvents(serror_pending=True))

        first, second = (read_registers(vcpu, NO_SVE) for vcpu in made.vcpus)

    assert (first["vcpu"], first["mp_state"]) == (0, "RUNNABLE")
    assert (second["vcpu"], second["mp_state"]) == (1, "STOPPED")
    assert [read["events"]["serror_pending"] for read in (first, second)] == [False, True]


@pytest.mark.kvm
def test_dump_contains_the_gic_cpu_interface() -> None:
    with guest("spin", vcpus=2, gic=True) as made:
        assert made.gic is not None
        mpidr = made.vcpus[1].get_one_reg(regs.sysreg(3, 0, 0, 0, 5))
        made.gic.set_cpu_sysreg(mpidr, sysregs.ENCODINGS["ICC_PMR_EL1"], 0xF0)

        read = [read_registers(vcpu, NO_SVE, gic=made.gic) for vcpu in made.vcpus]

    assert [value(one, "ICC_PMR_EL1") for one in read] == [0, 0xF0]
    assert [value(one, "ICC_SRE_EL1") & 1 for one in read] == [1, 1]
    assert [one["errors"] for one in read] == [{}, {}]


@pytest.fixture
def run_vectors(tmp_path: Path) -> Callable[[int], tuple[VcpuRegisters, VcpuRegisters]]:
    """Let a guest fill vector registers with that ZCR_EL1; return them cut and whole."""

    def run(zcr: int) -> tuple[VcpuRegisters, VcpuRegisters]:
        with System.open() as system:
            if not sve.host_vector_lengths(system):
                pytest.skip("the host has no SVE")
        image = programs.write("vectors", tmp_path)
        config = Config(image=image, vcpus=1, memory=16 * MIB, timeout_s=120.0, sve=SveRequest())
        with Machine(config, lambda data: None) as machine:
            machine.vcpus[0].set_one_reg(regs.X(2), layout.EXIT.base)
            machine.vcpus[0].set_one_reg(regs.X(4), zcr)
            assert machine.run() == 0
            vcpu, vls = machine.vcpus[0], machine.vls
            return read_registers(vcpu, vls), read_registers(vcpu, vls, whole=True)

    return run


@pytest.mark.kvm
@pytest.mark.parametrize("zcr", [0, 1, 2, 15, 0x1FF])
def test_vectors_have_the_length_the_guest_has_set(
    run_vectors: Callable[[int], tuple[VcpuRegisters, VcpuRegisters]], zcr: int
) -> None:
    read, whole = run_vectors(zcr)

    allowed = [length for length in read["vls"] if length <= ((zcr & 15) + 1) * 128]
    vector, predicate = max(allowed) // 8, max(allowed) // 64
    assert read["current_vl"] == read["shown_vl"] == whole["current_vl"] == max(allowed)
    z9, p4 = bytes(number & 0xFF for number in range(vector)), b"\xff" * predicate
    assert read["registers"]["Z9"] == f"0x{z9[::-1].hex()}"
    assert read["registers"]["Z5"] == f"0x{'5a' * vector}"
    assert read["registers"]["P4"] == read["registers"]["FFR"] == f"0x{p4.hex()}"
    assert whole["shown_vl"] == max(read["vls"])
    assert len(whole["registers"]["Z9"]) == 2 + max(read["vls"]) // 4
    assert value(whole, "Z9") == value(read, "Z9")


@pytest.mark.kvm
def test_vectors_set_from_outside_are_read_to_the_last_bit() -> None:
    with guest("spin", features=(PSCI, SVE)) as made:
        vls = sve.read_vls(made.vcpu)
        made.vcpu.finalize(SVE)
        longest = max(vls)
        made.vcpu.set_one_reg(regs.Z(31), 1 << longest - 1 | 1)
        made.vcpu.set_one_reg(regs.P(15), 1 << longest // 8 - 1)
        made.vcpu.set_one_reg(regs.lookup("ZCR_EL1", sysregs.ENCODINGS), 0)

        cut, whole = (read_registers(made.vcpu, vls, whole=whole) for whole in (False, True))

    assert value(whole, "Z31") == 1 << longest - 1 | 1
    assert value(whole, "P15") == 1 << longest // 8 - 1
    assert cut["registers"]["Z31"] == f"{1:#034x}"
    assert cut["registers"]["P15"] == f"{0:#06x}"
    assert "V31" not in whole["registers"]


@pytest.fixture
def like_the_host() -> VcpuRegisters:
    """Make a vCPU with all features of the host's user space."""
    with System.open() as system:
        features = [PSCI, SVE] if system.has(Cap.ARM_SVE) else [PSCI]
    with guest("spin", features=features) as made:
        if SVE not in features:
            return read_registers(made.vcpu, NO_SVE)
        vls = sve.read_vls(made.vcpu)
        made.vcpu.finalize(SVE)
        return read_registers(made.vcpu, vls)


@pytest.mark.kvm
def test_features_from_id_registers_match_cpuinfo(
    like_the_host: VcpuRegisters,
) -> None:
    lines = CPUINFO.read_text(encoding="ascii").splitlines()
    offered = next(line.split()[2:] for line in lines if line.startswith("Features"))
    known = [line.split() for line in HWCAPS.strip().splitlines()]

    present = set()
    for feature, place, least in known:
        register, _, field = place.partition(".")
        if getattr(decode(register, value(like_the_host, register)), field) >= int(least):
            present.add(feature)

    assert present == {feature for feature, *_ in known} & set(offered)


@pytest.mark.kvm
def test_cache_line_size_matches_the_host_library(
    like_the_host: VcpuRegisters,
) -> None:
    ctr = Ctr(value(like_the_host, "CTR_EL0"))

    lines = [os.sysconf(SC_LEVEL1_ICACHE_LINESIZE), os.sysconf(SC_LEVEL1_DCACHE_LINESIZE)]

    assert [line_bytes(ctr.IminLine), line_bytes(ctr.DminLine)] == lines


@pytest.mark.kvm
def test_midr_matches_sysfs(like_the_host: VcpuRegisters) -> None:
    assert value(like_the_host, "MIDR_EL1") == int(MIDR.read_text(encoding="ascii"), 16)
