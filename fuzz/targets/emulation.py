"""Instructions that pyvmm emulates, with the guest's registers, page tables and memory.

The first four bytes are the instruction; then come registers, flags and what is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from fuzz.input import Input
from pyvmm.arm64.control import Sctlr, Tcr
from pyvmm.arm64.esr import DabtIss
from pyvmm.arm64.loadstore import decode, describe
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason
from pyvmm.layout import RAM_BASE
from pyvmm.machine.nosyndrome import NotEmulated, emulate
from pyvmm.machine.plan import Feature
from pyvmm.memory.ram import GuestMemory

RAM_SIZE = 0x1_0000
DEVICE = 0x100_0000
TABLES = RAM_BASE + 0x1000
U64 = (1 << 64) - 1
MOST = 2 * 16  # accesses: two registers of 16 bytes, byte by byte
SYSTEM = ("SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1")
WORDS = (
    0xF8408401, 0xA9000801, 0xA9C10801, 0xB8004C01, 0x3DC00001, 0xAD400400, 0x69400801, 0xB8627801,
    0x38401401, 0xD50B7420, 0xF8200001,
)  # fmt: skip


class Vcpu:
    """A vCPU's registers, zero until set."""

    def __init__(self, values: dict[int, int], system: dict[str, int]) -> None:
        self.values = values
        self.sysreg = system

    def get_one_reg(self, reg_id: int) -> int:
        """Read a register."""
        return self.values.get(reg_id, 0)

    def set_one_reg(self, reg_id: int, value: int) -> None:
        """Write a register; the value must fit it, as KVM wants."""
        assert 0 <= value < 1 << 8 * regs.size(reg_id), f"{value:#x} in {reg_id:#x}"
        self.values[reg_id] = int(value)


def check(data: bytes) -> None:
    """Emulate the instruction; every access is the guest's, and outside RAM."""
    given = Input(data)
    word = given.number(4)
    assert describe(word)
    kind, sve = given.u8(), given.flag()
    vcpu = Vcpu({}, dict.fromkeys(SYSTEM, 0))
    with GuestMemory(RAM_BASE, RAM_SIZE) as memory:
        memory.write(RAM_BASE, word.to_bytes(4, "little"))
        _fill(vcpu, given, kind)
        content = given.rest()[: RAM_SIZE - 0x1000]
        memory.write(TABLES, content)
        plan = SimpleNamespace(
            vls={128, 256} if sve else set(),
            features=frozenset({Feature.EL2} if kind == 0xFF else ()),
        )
        board: Any = SimpleNamespace(plan=plan, addressable=memory)
        made: list[Exit] = []

        def access(leave: Exit) -> int:
            made.append(leave)
            return U64

        try:
            emulate(vcpu, _exit(word, vcpu, kind, given), board, access)  # type: ignore[arg-type]  # fakes
        except NotEmulated as error:
            assert error.message and not made
            return
        assert 0 < len(made) <= MOST
        for leave in made:
            assert not memory.contains(leave.address, 1), "it accesses RAM"
            assert leave.length in (1, 2, 4, 8)
            assert 0 <= leave.data < 1 << 8 * leave.length


def _fill(vcpu: Vcpu, given: Input, kind: int) -> None:
    """Set the registers: most point at the device, and the tables at memory."""
    for number in range(31):
        vcpu.values[regs.X(number)] = DEVICE + 8 * number
    for _ in range(kind & 3):
        vcpu.values[regs.X(given.below(31))] = given.wide()
    vcpu.values[regs.SP_EL1] = vcpu.values[regs.SP_EL0] = DEVICE + 0x800
    vcpu.values[regs.PC] = RAM_BASE if not kind & 4 else given.wide()
    vcpu.values[regs.PSTATE] = Pstate.of(M=Mode.EL1h) if not kind & 8 else given.number(4)
    if not kind & 16:
        return
    usual = Tcr.of(T0SZ=given.below(64), T1SZ=given.below(64), TG0=given.below(4),
                   TG1=given.below(4), IPS=given.below(8))  # fmt: skip
    vcpu.sysreg["TCR_EL1"] = usual if not kind & 32 else given.number(8)
    vcpu.sysreg["SCTLR_EL1"] = Sctlr.of(M=1, EE=given.below(2))
    vcpu.sysreg["TTBR0_EL1"] = TABLES + 0x1000 * given.below(4)
    vcpu.sysreg["TTBR1_EL1"] = TABLES if not kind & 32 else given.number(8)


def _exit(word: int, vcpu: Vcpu, kind: int, given: Input) -> Exit:
    """Return the exit that KVM would report for the instruction, or another one."""
    operation = decode(word)
    address, is_write = DEVICE, 0
    if operation is not None and not kind & 64:
        base = regs.SP_EL1 if operation.base == 31 else regs.X(operation.base)
        offset = operation.offset_register
        value = 0 if offset == 31 else vcpu.get_one_reg(regs.X(offset))
        address, _ = operation.address(vcpu.get_one_reg(base), value)
        is_write = int(not operation.is_load)
    fields = {"esr_iss": int(DabtIss.of(WnR=is_write)), "fault_ipa": address}
    leave = Exit(ExitReason.ARM_NISV, 0, 0)
    leave.fields = fields
    return leave


def seeds() -> Iterator[bytes]:
    """Yield loads and stores without and with translation."""
    tables = (DEVICE | 0x401).to_bytes(8, "little") * 4
    for word in WORDS:
        yield word.to_bytes(4, "little") + b"\0\0"
        yield word.to_bytes(4, "little") + b"\1\1" + bytes([1, 0xFF]) + b"\x03" * 8
        yield word.to_bytes(4, "little") + b"\x10\0" + bytes([25, 25, 0, 2, 1, 0, 0, 0]) + tables
