"""Accesses to devices for which the hardware reports no syndrome (KVM_EXIT_ARM_NISV).

After a data abort, Arm's CPUs describe the access only if the instruction loads or stores one
general-purpose register, without write-back. pyvmm decodes other instructions itself: it reads the
instruction, computes the address, makes the accesses, and sets the registers.

A load or store makes one access for each register, aligned or not, like an access that KVM decodes.
The first register comes first, at the lowest address. A register of 128 bits takes two accesses of
8 bytes, the lower address first. An access that crosses a 4 KiB page is divided into bytes. The
architecture guarantees no other division or order.  Source: Arm ARM DDI 0487, B2 "Requirements for
single-copy atomicity" and "Multi-register loads and stores that access Device memory".

The guest may change its code and tables after the exit. So pyvmm emulates an instruction only if it
accesses the address that KVM reports, in the direction that KVM reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from pyvmm.arm64.esr import DabtIss
from pyvmm.arm64.loadstore import SP_OR_ZR, LoadStore, decode, describe
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.arm64.translation import INSTRUCTION, Read, Regime, fetch, translate
from pyvmm.base.records import Record
from pyvmm.errors import GuestError
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason
from pyvmm.machine.board import Board
from pyvmm.machine.plan import Feature
from pyvmm.machine.vcpus import MachineVcpu
from pyvmm.memory.ram import Memory

PAGE = 4096  # bytes: the smallest page
LARGEST = 8  # bytes of one access to a device
U64 = 0xFFFF_FFFF_FFFF_FFFF

# Makes the access of an MMIO exit, and returns the value that a read gets.
Access = Callable[[Exit], int]


class NotEmulated(GuestError):
    """An access that pyvmm does not emulate; the message is the reason."""


class Piece(Record):
    """One access, to bytes of the instruction's first (0) or second (1) ``register``."""

    register: int
    offset: int  # of the first byte, in memory order
    address: int  # of the guest
    size: int
    attributes: int  # of the page


class Operands:
    """The state of a vCPU that a load or store uses, by the numbers in its encoding."""

    def __init__(self, vcpu: MachineVcpu, has_sve: bool) -> None:
        self._vcpu = vcpu
        self._simd = regs.Z if has_sve else regs.V
        self.pstate = Pstate(vcpu.get_one_reg(regs.PSTATE))
        self.pc = vcpu.get_one_reg(regs.PC)
        self.regime = Regime.of(vcpu.sysreg)

    @property
    def byte_order(self) -> Literal["little", "big"]:
        """The byte order of data."""
        sctlr, mode = self.regime.sctlr, self.pstate.M
        is_big = sctlr.E0E if mode == Mode.EL0t else sctlr.EE
        return "big" if is_big else "little"

    def read(self, operation: LoadStore, number: int) -> int:
        """Return a data register."""
        if operation.is_simd:
            return self._vcpu.get_one_reg(self._simd(number))
        return self.read_x(number)

    def write(self, operation: LoadStore, number: int, value: int) -> None:
        """Set a data register; its other bits become zero, also in a SIMD register.

        Source: DDI 0487, C1.2 "Register names": a write of V sets the other bits of Z to zero.
        """
        if operation.is_simd:
            self._vcpu.set_one_reg(self._simd(number), value)
        elif number != SP_OR_ZR:
            self._vcpu.set_one_reg(regs.X(number), operation.extend(value))

    def read_x(self, number: int) -> int:
        """Return a general register; number 31 is the zero register."""
        return 0 if number == SP_OR_ZR else self._vcpu.get_one_reg(regs.X(number))

    def base(self, number: int) -> int:
        """Return the id of a base register; number 31 is SP."""
        if number != SP_OR_ZR:
            return regs.X(number)
        mode = self.pstate.M
        return regs.SP_EL1 if mode == Mode.EL1h else regs.SP_EL0

    def complete(self, operation: LoadStore, base: int) -> None:
        """Write the base register back, and go to the next instruction.

        Source: Linux, kvm_skip_instr() in arch/arm64/kvm/hyp/include/hyp/adjust_pc.h.
        """
        if operation.writes_back:
            self._vcpu.set_one_reg(self.base(operation.base), base)
        self._vcpu.set_one_reg(regs.PC, self.pc + INSTRUCTION)
        self._vcpu.set_one_reg(regs.PSTATE, self.pstate.replace(BTYPE=0, SS=0))


def emulate(vcpu: MachineVcpu, leave: Exit, board: Board, access: Access) -> None:
    """Emulate the instruction of an ARM_NISV exit, and make its accesses.

    Raises: NotEmulated, before any access.
    """
    if Feature.EL2 in board.plan.features:
        raise NotEmulated("pyvmm does not translate addresses of guests with EL2")
    operands = Operands(vcpu, has_sve=bool(board.plan.vls))
    if operands.pstate.nRW:
        raise NotEmulated("pyvmm does not emulate AArch32's instructions")
    operation = _fetch(operands, reader(board.addressable))
    offset = operands.read_x(operation.offset_register)
    address, base = operation.address(vcpu.get_one_reg(operands.base(operation.base)), offset)
    pieces = _checked(operation, address, operands, leave, board)
    if operation.is_load:
        _load(operation, pieces, operands, access)
    else:
        _store(operation, pieces, operands, access)
    operands.complete(operation, base)


def reader(memory: Memory) -> Read:
    """Return the function with which a walk reads that memory."""
    return lambda address, length: bytes(memory.view(address, length))


def _fetch(operands: Operands, read: Read) -> LoadStore:
    """Return the instruction at PC.  Raises: NotEmulated."""
    try:
        word = fetch(operands.pc, operands.regime, read)
    except GuestError as error:
        raise NotEmulated(f"its instruction cannot be read: {error.message}") from error
    operation = decode(word)
    if operation is None:
        raise NotEmulated(f"pyvmm does not emulate `{describe(word)}`")
    if operation.is_unpredictable:
        raise NotEmulated(f"`{operation}` is CONSTRAINED UNPREDICTABLE")
    return operation


def _checked(
    operation: LoadStore, address: int, operands: Operands, leave: Exit, board: Board
) -> list[Piece]:
    """Return the instruction's accesses.

    Raises: NotEmulated, if none of them is the access of the exit, or one is not to a device.
    """
    try:
        pieces = list(_pieces(operation, address, operands.regime, reader(board.addressable)))
    except GuestError as error:
        raise NotEmulated(f"`{operation}`: {error.message}") from error
    iss, reported = DabtIss(leave.fields["esr_iss"]), leave.fields["fault_ipa"]
    if bool(iss.WnR) == operation.is_load or not any(
        piece.address <= reported < piece.address + piece.size for piece in pieces
    ):
        raise NotEmulated(f"`{operation}` is not the access that KVM reports")
    if any(board.addressable.contains(piece.address, 1) for piece in pieces):
        raise NotEmulated(f"`{operation}` also accesses RAM")
    if len({piece.attributes for piece in pieces}) > 1:
        # The hardware checked the permissions of the reported page only.
        raise NotEmulated(f"`{operation}` accesses two pages with different attributes")
    return pieces


def _pieces(operation: LoadStore, address: int, regime: Regime, read: Read) -> Iterator[Piece]:
    """Yield the accesses of an instruction, in order.  Raises: GuestError."""
    for register in range(len(operation.registers)):
        for offset in range(0, operation.size, LARGEST):
            start = address + register * operation.size + offset
            size = min(operation.size, LARGEST)
            step = size if start % PAGE + size <= PAGE else 1
            for at in range(0, size, step):
                place = translate(start + at & U64, regime, read)
                yield Piece(register, offset + at, place.address, step, place.attributes)


def _load(operation: LoadStore, pieces: list[Piece], operands: Operands, access: Access) -> None:
    loaded = [bytearray(operation.size) for _ in operation.registers]
    for piece in pieces:
        value = access(Exit(ExitReason.MMIO, piece.address, piece.size))
        data = (value & U64).to_bytes(LARGEST, "little")[: piece.size]
        loaded[piece.register][piece.offset : piece.offset + piece.size] = data
    for number, whole in zip(operation.registers, loaded, strict=True):
        operands.write(operation, number, int.from_bytes(whole, operands.byte_order))


def _store(operation: LoadStore, pieces: list[Piece], operands: Operands, access: Access) -> None:
    mask = (1 << 8 * operation.size) - 1
    stored = [
        (operands.read(operation, number) & mask).to_bytes(operation.size, operands.byte_order)
        for number in operation.registers
    ]
    for piece in pieces:
        data = stored[piece.register][piece.offset : piece.offset + piece.size]
        value = int.from_bytes(data, "little")
        access(Exit(ExitReason.MMIO, piece.address, piece.size, True, value))
