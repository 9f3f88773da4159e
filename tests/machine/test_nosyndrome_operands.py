"""Accesses without syndrome, emulated for a vCPU whose registers the test makes up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.arm64.control import Sctlr, Tcr
from pyvmm.arm64.esr import DabtIss
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason
from pyvmm.layout import RAM_BASE
from pyvmm.machine.nosyndrome import NotEmulated, emulate
from pyvmm.machine.plan import Feature
from pyvmm.memory.ram import GuestMemory

RAM_SIZE = 0x1_0000
RAM_END = RAM_BASE + RAM_SIZE
TABLES = RAM_BASE + 0x8000
DEVICE = 0x100_0100
EL1 = Pstate.of(M=Mode.EL1h)
EL0 = Pstate.of(M=Mode.EL0t)
X1, X2, Q1, Q2 = (0x1122_3345_5566_7788, 0x99AA_BBCC_DDEE_FF00, *(n << 64 | 5 for n in (3, 4)))

STR = 0xF8008401  # str x1, [x0], #8
STR_W = 0xB8004401  # str w1, [x0], #4
STR_SP = 0xF80087E1  # str x1, [sp], #8
STR_XZR = 0xF800841F  # str xzr, [x0], #8
STR_INDEXED = 0xF8236801  # str x1, [x0, x3]
STR_XZR_INDEX = 0xF83F6801  # str x1, [x0, xzr]
STR_Q = 0x3C810401  # str q1, [x0], #16
STR_UNPREDICTABLE = 0xF8008400  # str x0, [x0], #8
LDR = 0xF8408401  # ldr x1, [x0], #8
LDR_XZR = 0xF840841F  # ldr xzr, [x0], #8
LDR_Q = 0x3CC10401  # ldr q1, [x0], #16
LDRSB_W = 0x38C01401  # ldrsb w1, [x0], #1
STP = 0xA9000801  # stp x1, x2, [x0]
STP_Q = 0xAD000801  # stp q1, q2, [x0]
LDP = 0xA9400801  # ldp x1, x2, [x0]
LDP_Q = 0xAD400801  # ldp q1, q2, [x0]


class Vcpu:
    """A vCPU whose registers are zero until set."""

    def __init__(self) -> None:
        self.values = {regs.PC: RAM_BASE, regs.PSTATE: int(EL1), regs.X(0): DEVICE}
        self.values |= {regs.X(1): X1, regs.X(2): X2}
        self.values |= {make(n): q for make in (regs.V, regs.Z) for n, q in ((1, Q1), (2, Q2))}
        self.sysreg = dict.fromkeys(("SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1"), 0)

    def get_one_reg(self, reg_id: int) -> int:
        return self.values.get(reg_id, 0)

    def set_one_reg(self, reg_id: int, value: int) -> None:
        self.values[reg_id] = value


class Lab:
    """A vCPU, its memory, and the accesses that its instruction makes."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.vcpu = Vcpu()
        self.features: frozenset[Feature] = frozenset()
        self.vls: set[int] = set()
        self.log: list[tuple[int, int, int | None]] = []
        self.value: Callable[[int], int] = lambda address: 0

    def emulate(self, word: int, *, at: int = DEVICE, is_write: bool = True) -> None:
        """Emulate an instruction at the start of RAM, for an exit at that address."""
        self.memory.write(RAM_BASE, word.to_bytes(4, "little"))
        leave = Exit(ExitReason.ARM_NISV, 0, 0)
        leave.fields = {"esr_iss": int(DabtIss.of(WnR=is_write)), "fault_ipa": at}
        board = SimpleNamespace(
            plan=SimpleNamespace(features=self.features, vls=self.vls), addressable=self.memory
        )
        emulate(self.vcpu, leave, board, self.access)  # type: ignore[arg-type]  # fakes

    def access(self, leave: Exit) -> int:
        assert leave.reason == ExitReason.MMIO
        data = leave.data if leave.is_write else None
        self.log.append((leave.address, leave.length, data))
        return self.value(leave.address)

    def refusal(self, word: int, **exit_: Any) -> str:
        """Return why the emulation is refused; nothing may have changed."""
        before = dict(self.vcpu.values)
        with pytest.raises(NotEmulated) as caught:
            self.emulate(word, **exit_)
        assert (self.log, self.vcpu.values) == ([], before)
        return caught.value.message

    def __getitem__(self, reg_id: int) -> int:
        return self.vcpu.get_one_reg(reg_id)

    def __setitem__(self, reg_id: int, value: int) -> None:
        self.vcpu.set_one_reg(reg_id, value)

    def map(self, *pages: int) -> None:
        """Map RAM's GiB at its own address, and these descriptors as pages from DEVICE's on."""
        second, third = TABLES + 0x1000, TABLES + 0x2000
        entries = {TABLES: second | 3, TABLES + 8 * (RAM_BASE >> 30): RAM_BASE | 0x401}
        entries[second + 8 * (DEVICE >> 21)] = third | 3
        entries |= {third + 8 * (DEVICE >> 12 & 511) + 8 * n: to for n, to in enumerate(pages)}
        for address, entry in entries.items():
            self.memory.write(address, entry.to_bytes(8, "little"))
        self.vcpu.sysreg |= {
            "TCR_EL1": Tcr.of(T0SZ=25, T1SZ=25, TG1=2, IPS=1), "SCTLR_EL1": Sctlr.of(M=1),
            "TTBR0_EL1": TABLES, "TTBR1_EL1": TABLES,
        }  # fmt: skip


@pytest.fixture
def lab() -> Any:
    with GuestMemory(RAM_BASE, RAM_SIZE) as memory:
        yield Lab(memory)


@pytest.mark.parametrize(
    ("word", "accesses"),
    [
        (STR, [(0, 8, X1)]),
        (STR_W, [(0, 4, X1 & 0xFFFF_FFFF)]),
        (STR_XZR, [(0, 8, 0)]),
        (STP, [(0, 8, X1), (8, 8, X2)]),
        (STR_Q, [(0, 8, 5), (8, 8, 3)]),
        (STP_Q, [(0, 8, 5), (8, 8, 3), (16, 8, 5), (24, 8, 4)]),
    ],
)
def test_store_makes_its_accesses_in_order(
    lab: Lab, word: int, accesses: list[tuple[int, int, int]]
) -> None:
    lab.emulate(word)

    assert lab.log == [(DEVICE + offset, size, value) for offset, size, value in accesses]


def test_load_reads_in_order_and_sets_its_registers(lab: Lab) -> None:
    lab.value = lambda address: address << 8 | 0xFF << 56  # more than a 4-byte register gets

    lab.emulate(LDP_Q, is_write=False)

    assert lab.log == [(DEVICE + offset, 8, None) for offset in (0, 8, 16, 24)]
    low, high, third, fourth = (lab.value(DEVICE + at) for at in (0, 8, 16, 24))
    assert (lab[regs.V(1)], lab[regs.V(2)]) == (high << 64 | low, fourth << 64 | third)


def test_load_ignores_what_a_device_returns_beyond_its_size(lab: Lab) -> None:
    lab.value = lambda address: -1

    lab.emulate(LDRSB_W, is_write=False)

    assert lab.log == [(DEVICE, 1, None)]
    assert lab[regs.X(1)] == 0xFFFF_FFFF


def test_load_into_the_zero_register_reads_the_device_and_sets_the_base_alone(lab: Lab) -> None:
    before = dict(lab.vcpu.values)
    lab.value = lambda address: 0x55

    lab.emulate(LDR_XZR, is_write=False)

    assert lab.log == [(DEVICE, 8, None)]
    changed = {regs.PC: RAM_BASE + 4, regs.X(0): DEVICE + 8, regs.PSTATE: int(EL1)}
    assert lab.vcpu.values == before | changed


@pytest.mark.parametrize(
    ("vls", "used", "other"), [(set(), regs.V, regs.Z), ({128}, regs.Z, regs.V)]
)
def test_simd_register_of_a_vcpu_with_sve_is_z(
    lab: Lab, vls: set[int], used: Callable[[int], int], other: Callable[[int], int]
) -> None:
    lab.vls = vls
    lab[used(1)] = 1 << 200 | 7 << 64 | 6
    lab.value = lambda address: 9

    lab.emulate(STR_Q)
    lab[regs.PC], lab[regs.X(0)] = RAM_BASE, DEVICE
    lab.emulate(LDR_Q, is_write=False)

    assert [data for _, _, data in lab.log] == [6, 7, None, None]
    assert (lab[used(1)], lab[other(1)]) == (9 << 64 | 9, Q1)


@pytest.mark.parametrize(
    ("pstate", "sctlr", "is_big"),
    [
        (EL1, Sctlr.of(), False),
        (EL1, Sctlr.of(EE=1), True),
        (EL1, Sctlr.of(E0E=1), False),
        (EL1.replace(M=Mode.EL1t), Sctlr.of(EE=1), True),
        (EL0, Sctlr.of(EE=1), False),
        (EL0, Sctlr.of(E0E=1), True),
    ],
)
def test_data_has_the_byte_order_of_the_exception_level(
    lab: Lab, pstate: Pstate, sctlr: Sctlr, is_big: bool
) -> None:
    lab[regs.PSTATE] = int(pstate)
    lab.vcpu.sysreg["SCTLR_EL1"] = sctlr
    swapped = int.from_bytes(X1.to_bytes(8, "little"), "big")
    lab.value = lambda address: X2

    lab.emulate(STR)
    lab[regs.PC], lab[regs.X(0)] = RAM_BASE, DEVICE
    lab.emulate(LDR, is_write=False)

    assert lab.log[0] == (DEVICE, 8, swapped if is_big else X1)
    loaded = int.from_bytes(X2.to_bytes(8, "little"), "big") if is_big else X2
    assert lab[regs.X(1)] == loaded


@pytest.mark.parametrize(
    ("mode", "used", "other"),
    [
        (Mode.EL1h, regs.SP_EL1, regs.SP_EL0),
        (Mode.EL1t, regs.SP_EL0, regs.SP_EL1),
        (Mode.EL0t, regs.SP_EL0, regs.SP_EL1),
    ],
)
def test_base_register_31_is_the_modes_stack_pointer(
    lab: Lab, mode: Mode, used: int, other: int
) -> None:
    lab[regs.PSTATE] = int(Pstate.of(M=mode))
    lab[used], lab[other] = DEVICE, 0x1234

    lab.emulate(STR_SP)

    assert (lab[used], lab[other]) == (DEVICE + 8, 0x1234)


def test_offset_register_is_added_and_31_is_zero(lab: Lab) -> None:
    lab[regs.X(3)] = 0x40
    lab[regs.SP_EL1] = 0x80

    lab.emulate(STR_INDEXED, at=DEVICE + 0x40)
    lab[regs.PC] = RAM_BASE
    lab.emulate(STR_XZR_INDEX)

    assert [address for address, _, _ in lab.log] == [DEVICE + 0x40, DEVICE]
    assert lab[regs.X(0)] == DEVICE


def test_completed_instruction_clears_the_branch_type_and_the_step(lab: Lab) -> None:
    lab[regs.PSTATE] = int(EL1.replace(BTYPE=3, SS=1, C=1))

    lab.emulate(STP)

    assert lab[regs.PSTATE] == EL1.replace(C=1)
    assert lab[regs.PC] == RAM_BASE + 4


@pytest.mark.parametrize(
    ("offset", "sizes"),
    [(0xFF8, [8]), (0xFF9, [1] * 8), (0xFFF, [1] * 8), (0, [8]), (3, [8])],
)
def test_access_that_crosses_a_page_is_divided_into_bytes(
    lab: Lab, offset: int, sizes: list[int]
) -> None:
    start = (DEVICE & ~0xFFF) + offset
    lab[regs.X(0)] = start

    lab.emulate(STR, at=start)

    data = b"".join((value or 0).to_bytes(size, "little") for _, size, value in lab.log)
    assert [size for _, size, _ in lab.log] == sizes
    assert lab.log[0][0] == start
    assert [address - start for address, _, _ in lab.log] == list(range(0, 8, sizes[0]))
    assert data == X1.to_bytes(8, "little")


@pytest.mark.parametrize("at", [DEVICE + 0xEF8, DEVICE + 0xEFD])
def test_each_byte_goes_where_its_page_is(lab: Lab, at: int) -> None:
    first, second = DEVICE & ~0xFFF, 0x300_0000
    lab.map(first | 0x403, second | 0x403)
    lab[regs.X(0)] = at

    lab.emulate(LDP, at=at, is_write=False)

    touched = [byte for address, size, _ in lab.log for byte in range(address, address + size)]
    end = first + 0x1000
    assert touched == [*range(at, end), *range(second, second + 16 - (end - at))]


def test_access_before_the_first_page_ends_in_it(lab: Lab) -> None:
    lab.map(DEVICE & ~0xFFF | 0x403)
    lab[regs.X(0)] = at = (DEVICE & ~0xFFF) + 0xFF0

    lab.emulate(STP, at=at + 8)

    assert [(address - at, size) for address, size, _ in lab.log] == [(0, 8), (8, 8)]


@pytest.mark.parametrize("at", [DEVICE, DEVICE + 1, DEVICE + 15])
def test_exit_may_report_any_byte_of_the_instructions_accesses(lab: Lab, at: int) -> None:
    lab.emulate(STP, at=at)

    assert len(lab.log) == 2


@pytest.mark.parametrize(
    ("word", "at", "is_write"),
    [
        (STP, DEVICE - 1, True),
        (STP, DEVICE + 16, True),
        (STP, DEVICE, False),
        (LDP, DEVICE, True),
        (LDP, DEVICE + 16, False),
    ],
)
def test_another_access_than_the_exits_is_refused(
    lab: Lab, word: int, at: int, is_write: bool
) -> None:
    reason = lab.refusal(word, at=at, is_write=is_write)

    assert reason.endswith("is not the access that KVM reports")


@pytest.mark.parametrize(
    ("start", "at"),
    [(RAM_BASE - 8, RAM_BASE - 8), (RAM_END - 8, RAM_END), (RAM_BASE - 15, RAM_BASE - 15)],
)
def test_access_partly_to_ram_is_refused(lab: Lab, start: int, at: int) -> None:
    lab[regs.X(0)] = start

    assert lab.refusal(STP, at=at).endswith("also accesses RAM")


def test_access_of_rams_last_byte_alone_is_refused(lab: Lab) -> None:
    lab[regs.X(0)] = RAM_END - 1

    assert lab.refusal(STR, at=RAM_END).endswith("also accesses RAM")


def test_access_around_ram_is_emulated(lab: Lab) -> None:
    for start in (RAM_BASE - 16, RAM_END):
        lab[regs.PC], lab[regs.X(0)] = RAM_BASE, start

        lab.emulate(STP, at=start)

    assert len(lab.log) == 4


@pytest.mark.parametrize("other", [0x443, 0x483, 0x407, 0x403 | 1 << 54])
def test_access_to_pages_with_different_attributes_is_refused(lab: Lab, other: int) -> None:
    page = DEVICE & ~0xFFF
    lab.map(page | 0x403, page | other)
    lab[regs.X(0)] = page + 0xFF8

    reason = lab.refusal(STP, at=page + 0xFF8)

    assert reason.endswith("accesses two pages with different attributes")


def test_access_to_an_unmapped_page_is_refused(lab: Lab) -> None:
    page = DEVICE & ~0xFFF
    lab.map(page | 0x403)
    lab[regs.X(0)] = page + 0xFF8

    reason = lab.refusal(STP, at=page + 0xFF8)

    assert reason.startswith("`stp x1, x2, [x0]`: virtual address 0x1001000: level 3 translation")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (0xB8210002, "pyvmm does not emulate `ldadd w1, w2, [x0]`"),
        (STR_UNPREDICTABLE, "`str x0, [x0], #8` is CONSTRAINED UNPREDICTABLE"),
    ],
)
def test_instruction_that_is_not_emulated_is_named(lab: Lab, word: int, reason: str) -> None:
    assert lab.refusal(word) == reason


def test_instruction_outside_ram_is_refused(lab: Lab) -> None:
    lab[regs.PC] = RAM_END

    assert lab.refusal(STR).startswith("its instruction cannot be read: ")


def test_instruction_at_a_virtual_address_is_emulated(lab: Lab) -> None:
    page = DEVICE & ~0xFFF
    lab.map(page | 0x403)
    lab[regs.PC] = code = RAM_BASE + (-1 << 39 & 2**64 - 1)

    lab.emulate(STR)

    assert lab.log == [(DEVICE, 8, X1)]
    assert lab[regs.PC] == code + 4


def test_guest_with_el2_is_refused(lab: Lab) -> None:
    lab.features = frozenset({Feature.EL2})

    assert "EL2" in lab.refusal(STR)


def test_aarch32_is_refused(lab: Lab) -> None:
    lab[regs.PSTATE] = 0x1D3

    assert "AArch32" in lab.refusal(STR)
