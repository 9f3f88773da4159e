"""Registers by name as typed values, compared lane by lane with a guest's."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.arm64 import sysregs, vl
from pyvmm.arm64.control import Zcr
from pyvmm.arm64.lanes import Predicate, Vector
from pyvmm.arm64.pstate import Pstate
from pyvmm.config import Config, SveRequest
from pyvmm.errors import KvmError, UsageError
from pyvmm.kvm import regs, sve
from pyvmm.kvm.system import System
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from pyvmm.machine.registerdump import read_registers
from pyvmm.machine.registers import Register, RegisterView
from tests import programs

UNKNOWN = 0x6030_0000_0017_0001  # of a group that no kernel has
ZCR_EL1 = regs.lookup("ZCR_EL1", sysregs.ENCODINGS)


class Saved(RegisterView):
    """Saved registers of a vCPU, by KVM's ids, and its refusals."""

    def __init__(self, values: dict[int, int]) -> None:
        self.id = 0
        self.values = values

    def get_reg_list(self) -> list[int]:
        return list(self.values)

    def get_one_reg(self, reg_id: int) -> int:
        if reg_id not in self.values:
            raise KvmError("KVM_GET_ONE_REG", regs.name(reg_id), errno.ENOENT)
        return self.values[reg_id]

    def set_one_reg(self, reg_id: int, value: int) -> None:
        assert value < 1 << 8 * regs.size(reg_id)
        self.values[reg_id] = value


def saved(longest: int, **values: int) -> Saved:
    """Make a vCPU with every vector length up to that, and these registers."""
    ids = {regs.lookup(name, sysregs.ENCODINGS): value for name, value in values.items()}
    return Saved({regs.SVE_VLS: (1 << longest // 128) - 1, **ids})


def test_vector_has_the_vcpus_longest_length() -> None:
    vcpu = saved(512, Z5=0xFF << 504 | 7)

    assert vcpu.z[5] == Vector(0xFF << 504 | 7, 512)
    assert vcpu.z[5].b[63] == 0xFF
    assert vcpu.vls == {128, 256, 384, 512}


def test_predicates_have_the_vcpus_longest_length() -> None:
    vcpu = saved(256, P3=1 << 31, FFR=0xFFFF_FFFF)

    assert vcpu.p[3] == Predicate(1 << 31, 256)
    assert all(vcpu.ffr.b)
    assert len(vcpu.ffr.b) == 32


@pytest.mark.parametrize(
    ("longest", "slices"), [(128, 1), (2048, 1), (2176, 2), (4096, 2), (65536, 32)]
)
def test_slices_cover_the_longest_length(longest: int, slices: int) -> None:
    vcpu = Saved({regs.SVE_VLS: 1 << longest // 128 - 1})
    value = 1 << longest - 1 | 1

    vcpu.z[1] = value
    vcpu.p[2] = 1 << longest // 8 - 1 | 1
    vcpu.ffr = Predicate(1, longest)

    written = set(vcpu.values) - {regs.SVE_VLS}
    numbers = range(slices)
    assert written == {
        *(regs.Z(1, n) for n in numbers),
        *(regs.P(2, n) for n in numbers),
        *(regs.FFR(n) for n in numbers),
    }
    assert vcpu.z[1] == Vector(value, longest)
    assert vcpu.p[2].b[-1]
    assert vcpu.ffr.value == 1


def test_lane_is_written_by_replacing_it() -> None:
    vcpu = saved(256, Z5=0)

    vcpu.z[5] = vcpu.z[5].replace(s={7: -2})

    assert vcpu.z[5].s.signed == (0, 0, 0, 0, 0, 0, 0, -2)


@pytest.mark.parametrize(("value", "fits"), [(Vector(1, 128), True), (Vector(1 << 255, 512), True),
                                             (Vector(1 << 256, 512), False)])  # fmt: skip
def test_vector_of_another_length_is_written_if_its_value_fits(value: Vector, fits: bool) -> None:
    vcpu = saved(256, Z0=0)

    if not fits:
        with pytest.raises(ValueError, match="does not fit 256 bits"):
            vcpu.z[0] = value
        return
    vcpu.z[0] = value

    assert vcpu.z[0] == Vector(value.value, 256)


def test_predicate_is_not_written_to_a_vector_register() -> None:
    with pytest.raises(TypeError, match="Z3 holds a Vector, not a Predicate"):
        saved(256).reg["Z3"] = Predicate(0, 256)


@pytest.mark.parametrize("number", [-1, 32])
def test_unknown_register_number_is_an_index_error(number: int) -> None:
    with pytest.raises(IndexError, match="use 0 to 31"):
        _ = saved(128).z[number]


def test_banks_have_the_architectures_number_of_registers() -> None:
    vcpu = saved(128, **{f"P{number}": number for number in range(16)})

    assert (len(vcpu.z), len(vcpu.p)) == (32, 16)
    assert [predicate.value for predicate in vcpu.p] == list(range(16))


def test_vectors_are_refused_on_a_vcpu_without_sve() -> None:
    vcpu = Saved({regs.V(5): 7})

    assert vcpu.vls == vl.NO_SVE
    assert vcpu.vl_in_use == 0
    with pytest.raises(UsageError, match="vCPU 0 has no SVE, and so no Z5"):
        _ = vcpu.z[5]
    assert vcpu.reg["V5"] == Vector(7, 128)


def test_system_register_has_its_fields() -> None:
    vcpu = saved(128, ZCR_EL1=3, TPIDR_EL0=0x1234)

    assert vcpu.sysreg["ZCR_EL1"].LEN == 3
    assert vcpu.sysreg["TPIDR_EL0"] == 0x1234


def test_system_register_is_written_with_fields_or_a_number() -> None:
    vcpu = saved(128, ZCR_EL1=3)

    vcpu.sysreg["ZCR_EL1"] = vcpu.sysreg["ZCR_EL1"].replace(LEN=1)
    vcpu.sysreg["S3_0_C13_C0_4"] = 9

    assert vcpu.values[ZCR_EL1] == 1
    assert vcpu.sysreg["TPIDR_EL1"] == 9


@pytest.mark.parametrize("name", ["ZCR_EL2", "SCTLR_EL9", "PC", "Z3"])
def test_unknown_system_register_name_is_a_key_error(name: str) -> None:
    vcpu = saved(128, PC=0)

    with pytest.raises(KeyError, match=name):
        _ = vcpu.sysreg[name]
    assert name not in vcpu.sysreg


def test_timers_have_arms_names() -> None:
    vcpu = saved(128, TIMER_CNT=1, TIMER_CVAL=2, TIMER_CTL=5)

    assert vcpu.sysreg["CNTVCT_EL0"] == 1
    assert vcpu.sysreg["CNTV_CVAL_EL0"] == 2
    assert vcpu.sysreg["CNTV_CTL_EL0"].ISTATUS == 1


def test_other_refusals_are_kvm_errors() -> None:
    class Refusing(Saved):
        def get_one_reg(self, reg_id: int) -> int:
            raise KvmError("KVM_GET_ONE_REG", regs.name(reg_id), errno.EPERM)

    with pytest.raises(KvmError):
        _ = Refusing({}).sysreg["ZCR_EL1"]
    with pytest.raises(KvmError):
        _ = Refusing({}).vls


def test_registers_lists_typed_values_and_unknown_ones_raw() -> None:
    vcpu = saved(256, PC=4, PSTATE=0x3C5, Z1=1, P1=1, FFR=1, ZCR_EL1=1, FPSR=0)
    vcpu.values[UNKNOWN] = 0xABCD

    rows = {row.name: row for row in vcpu.registers()}

    assert [row.id for row in rows.values()] == list(vcpu.values)
    assert rows[f"{UNKNOWN:#x}"] == Register(UNKNOWN, f"{UNKNOWN:#x}", 8, 0xABCD)
    assert rows["SVE_VLS"].value == frozenset({128, 256})
    assert rows["Z1"].value == Vector(1, 256)
    assert rows["FFR"].value == Predicate(1, 256)
    assert isinstance(rows["PSTATE"].value, Pstate)
    assert (rows["FPSR"].size, rows["Z1"].size) == (4, 256)
    assert set(vcpu.reg) == set(rows)
    assert len(vcpu.reg) == len(rows)
    assert list(vcpu.sysreg) == ["ZCR_EL1"]
    assert vcpu.reg[f"{UNKNOWN:#x}"] == 0xABCD


def test_registers_lists_a_refused_register_with_its_errno(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vcpu = Saved({regs.PC: 4})
    monkeypatch.setattr(vcpu, "get_reg_list", lambda: [regs.PC, regs.FPSR])

    pc, fpsr = vcpu.registers()

    assert (pc.value, pc.error) == (4, "")
    assert (fpsr.value, fpsr.error) == (None, "ENOENT")


@pytest.mark.parametrize(("zcr", "bits"), [(0, 128), (1, 256), (2, 384), (15, 512)])
def test_length_in_use_follows_zcr(zcr: int, bits: int) -> None:
    assert saved(512, ZCR_EL1=zcr, PSTATE=0x3C5).vl_in_use == bits


# Compared with a guest

Z_AT, P_AT = layout.RAM_BASE + 8 * MIB, layout.RAM_BASE + 9 * MIB
W5, X6, X7, X8 = 0x7FFF_FFF0, 0x8000_0000_0000_0001, 0x0123_4567_89AB_CDEF, 11
LONGEST = (128, 512, 2048)

Make = Callable[[str, int], Machine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a machine that runs a program at that vector length; 0 is without SVE."""
    with ExitStack() as stack:

        def machine(program: str, longest: int) -> Machine:
            with System.open() as system:
                if longest and longest not in sve.host_vector_lengths(system):
                    pytest.skip(f"the host has no vectors of {longest} bits")
            image = programs.write(program, tmp_path)
            request = SveRequest(max_vl=longest) if longest else SveRequest(off=True)
            config = Config(image=image, vcpus=1, memory=16 * MIB, timeout_s=120.0, sve=request)
            made = stack.enter_context(Machine(config, lambda data: None))
            x = {2: layout.EXIT.base, 5: W5, 6: X6, 7: X7, 8: X8, 9: Z_AT, 10: P_AT}
            for number, value in x.items():
                made.vcpus[0].reg[f"X{number}"] = value
            return made

        yield machine


def wrapped(numbers: Iterator[int], bits: int) -> list[int]:
    """Convert numbers to signed ones of that many bits."""
    half, whole = 1 << bits - 1, 1 << bits
    return [(number + half) % whole - half for number in numbers]


def rounded(number: int, code: str) -> float:
    """Round a number to a float's precision."""
    value: float = struct.unpack(code, struct.pack(code, number))[0]
    return value


@pytest.mark.kvm
@pytest.mark.parametrize("longest", LONGEST)
def test_lanes_match_those_the_guest_wrote(make: Make, longest: int) -> None:
    vm = make("lanes", longest)
    assert vm.run() == 0
    z = vm.vcpus[0].z

    lanes = {size: range(longest // size) for size in (8, 16, 32, 64)}
    halves = wrapped((5 - 7 * i for i in lanes[16]), 16)
    singles = wrapped((W5 + 3 * i for i in lanes[32]), 32)
    doubles = wrapped((X6 + X7 * i for i in lanes[64]), 64)
    assert list(z[0].b.signed) == wrapped((3 * i - 16 for i in lanes[8]), 8)
    assert list(z[1].h.signed) == halves
    assert list(z[2].s.signed) == singles
    assert list(z[3].d.signed) == doubles
    assert list(z[4].h.float) == [rounded(number, "e") for number in halves]
    assert list(z[5].s.float) == [rounded(number, "f") for number in singles]
    assert list(z[6].d.float) == [rounded(number, "d") for number in doubles]
    assert {vector.vl for vector in z} == {longest}


@pytest.mark.kvm
@pytest.mark.parametrize("longest", LONGEST)
def test_active_lanes_match_those_the_guest_chose(make: Make, longest: int) -> None:
    vm = make("lanes", longest)
    assert vm.run() == 0
    vcpu = vm.vcpus[0]

    first = min(X8, longest // 16)
    assert vcpu.p[1].d == (True,) * (longest // 64)
    assert vcpu.p[1].b == (True, *[False] * 7) * (longest // 64)
    assert vcpu.p[2].h == (True,) * first + (False,) * (longest // 16 - first)
    assert vcpu.ffr == vcpu.p[2]


@pytest.mark.kvm
@pytest.mark.parametrize("longest", LONGEST)
def test_registers_match_those_the_guest_stored(make: Make, longest: int) -> None:
    vm = make("lanes", longest)
    assert vm.run() == 0
    vcpu = vm.vcpus[0]

    numbers = (0, 1, 2, 3, 4, 5, 6, 31)
    vector, predicate = longest // 8, longest // 64
    stored = {n: vm.memory.read(Z_AT + at * vector, vector) for at, n in enumerate(numbers)}
    assert {n: bytes(vcpu.z[n]) for n in numbers} == stored
    held = [bytes(one) for one in (vcpu.p[1], vcpu.p[2], vcpu.p[15], vcpu.ffr)]
    assert held == [vm.memory.read(P_AT + at * predicate, predicate) for at in range(4)]


@pytest.mark.kvm
@pytest.mark.parametrize("longest", LONGEST)
def test_guest_reads_registers_written_by_the_vmm(make: Make, longest: int) -> None:
    vm = make("stores", longest)
    vcpu = vm.vcpus[0]
    floats = [-1.5 * i for i in range(longest // 32)]
    numbers = [i % 256 - 128 for i in range(longest // 8)]
    thirds = [i % 3 == 0 for i in range(longest // 32)]

    vcpu.z[0] = Vector.of(longest, s=floats)
    vcpu.z[31] = Vector.of(longest, b=numbers)
    vcpu.p[0] = 1
    vcpu.p[15] = Predicate.of(longest, s=thirds)
    vcpu.ffr = Predicate.of(longest, b=[True] * (longest // 8 - 1))
    vcpu.sysreg["ZCR_EL1"] = Zcr.of(LEN=15)
    assert vm.run() == 0

    vector, predicate = longest // 8, longest // 64
    assert vm.memory.read(Z_AT, vector) == struct.pack(f"<{longest // 32}f", *floats)
    assert vm.memory.read(Z_AT + vector, vector) == struct.pack(f"<{vector}b", *numbers)
    p0, p15, ffr = (vm.memory.read(P_AT + n * predicate, predicate) for n in range(3))
    assert int.from_bytes(p0, "little") == 1
    assert int.from_bytes(p15, "little") == sum(1 << 4 * i for i, on in enumerate(thirds) if on)
    assert int.from_bytes(ffr, "little") == (1 << longest // 8 - 1) - 1


@pytest.mark.kvm
@pytest.mark.parametrize("zcr", [0, 1, 15])
def test_length_in_use_matches_the_guests_store_length(make: Make, zcr: int) -> None:
    vm = make("stores", 512)
    vcpu = vm.vcpus[0]
    vcpu.z[0] = Vector.of(512, b=[0x11] * 64)
    vcpu.z[31] = Vector.of(512, b=[0x22] * 64)
    vcpu.sysreg["ZCR_EL1"] = zcr
    assert vm.run() == 0

    assert vm.memory.read(Z_AT, 64).rstrip(b"\0").count(0x11) == vcpu.vl_in_use // 8


@pytest.mark.kvm
@pytest.mark.parametrize("longest", [0, *LONGEST])
def test_every_listed_register_has_a_unique_name_and_its_value(make: Make, longest: int) -> None:
    vm = make("stores", longest)
    vcpu = vm.vcpus[0]

    rows = list(vcpu.registers())
    read = read_registers(vcpu, vm.vls, whole=True)["registers"]

    assert [row.id for row in rows] == vcpu.get_reg_list()
    assert len({row.name for row in rows}) == len(rows)
    assert [row.name for row in rows if row.error] == []
    assert [row.name for row in rows if row.name.startswith("0x")] == []
    assert all(regs.lookup(row.name, sysregs.ENCODINGS) == row.id for row in rows)
    still = {
        row.name: int(row.value)
        for row in rows
        if isinstance(row.value, int | Vector | Predicate)
        and row.name not in ("TIMER_CNT", "PTIMER_CNT")
    }
    assert still == {name: int(read[name], 16) for name in still}
