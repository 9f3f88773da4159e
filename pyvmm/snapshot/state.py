"""What a snapshot says of a machine beside its memory: one document, readable by a person.

Numbers that may be wider than 53 bits are hexadecimal text.  Registers go by KVM's ids, GIC
registers by their offsets, devices by the names of the guest physical map (pyvmm.layout).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pyvmm.config import Config
from pyvmm.errors import UsageError
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import MpState, VcpuFeature
from pyvmm.kvm.vcpu import VcpuEvents
from pyvmm.layout import RAM
from pyvmm.machine.plan import Feature
from pyvmm.snapshot.codec import (
    Damaged,
    Form,
    Hex,
    HexTable,
    Json,
    decode,
    encode,
    hexadecimal,
    learn,
    read_hexadecimal,
)

SCHEMA: Final = 1
LARGEST_REGISTER: Final = regs.size(regs.U2048)
MOST_REGISTERS: Final = 8192  # of a vCPU: KVM lists some 550
PVTIME: Final = "pvtime"


def _write_registers(registers: dict[int, int]) -> Json:
    return {
        hexadecimal(reg_id, 16): hexadecimal(value, 2 * regs.size(reg_id))
        for reg_id, value in registers.items()
    }


def _read_registers(document: Any) -> dict[int, int]:
    """Registers by id, each value no wider than its id says, and no id of more than KVM has."""
    if not isinstance(document, dict) or len(document) > MOST_REGISTERS:
        raise ValueError(document)
    registers = {}
    for key, text in document.items():
        reg_id, value = read_hexadecimal(key), read_hexadecimal(text)
        size = regs.size(reg_id)
        if reg_id >> 64 or size > LARGEST_REGISTER or value >> 8 * size:
            raise ValueError(key)
        registers[reg_id] = value
    return registers


Registers = Annotated[dict[int, int], Form(_write_registers, _read_registers)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Where and when a snapshot was taken.

    ``time`` is UTC, as 2026-11-26T21:40:00Z; ``machine`` is the computer in words, ``emulated``
    whether pyvmm emulates it; ``midr`` is MIDR_EL1 of the CPU that saved.
    """

    time: str
    pyvmm: str
    kernel: str
    machine: str
    emulated: bool
    midr: Hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The guest's time when it stopped.

    ``virtual`` is CNTVCT_EL0 as the guest saw it, at ``hz`` ticks a second; ``real_ns`` is the
    host's CLOCK_REALTIME then.
    """

    hz: int
    virtual: Hex
    real_ns: int

    def __post_init__(self) -> None:
        if self.hz < 1 or self.virtual >> 64 or self.real_ns < 0:
            raise UsageError("no clock is like that")


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Guest physical addresses with memory behind them: RAM, the stolen time of vCPUs."""

    name: str
    base: Hex
    size: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.base + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Exceptions that wait to be taken (KVM_GET_VCPU_EVENTS)."""

    serror_pending: bool = False
    serror_has_esr: bool = False
    serror_esr: Hex = 0

    @classmethod
    def of(cls, events: VcpuEvents) -> Events:
        """What KVM says; an external abort is never pending there, only set."""
        return cls(
            serror_pending=events.serror_pending,
            serror_has_esr=events.serror_has_esr,
            serror_esr=events.serror_esr,
        )

    def for_kvm(self) -> VcpuEvents:
        """The same, for KVM_SET_VCPU_EVENTS."""
        return VcpuEvents(self.serror_pending, self.serror_has_esr, self.serror_esr)


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuState:
    """One vCPU: what it was made with, and everything KVM_GET_REG_LIST names, in its order.

    ``vls`` are vector lengths in bits; ``pvtime`` is where the guest reads its stolen time.
    ``refused`` are registers that KVM listed and did not give, with the errno's name.
    """

    id: int
    features: frozenset[VcpuFeature]
    vls: frozenset[int]
    mp_state: MpState
    events: Events
    pvtime: Hex | None
    registers: Registers
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GicBlock:
    """Registers of one part of an interrupt controller; ``vcpu`` is whose they are, if one's.

    ``part`` is the name of a table in pyvmm.snapshot.gic, which numbers the registers.
    """

    part: str
    vcpu: int | None
    registers: HexTable


@dataclass(frozen=True, slots=True, kw_only=True)
class GicState:
    """The interrupt controller; ``kind`` is how --irqchip calls it."""

    kind: str
    nr_irqs: int
    blocks: tuple[GicBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A machine at rest, but for what is in its memory.

    ``config`` is what was asked for, the rest what it came to.  ``devices`` is each device's own
    account by its name in the guest physical map.  ``warnings`` are what the one who saved it had
    to say: registers of a class that pyvmm does not know.
    """

    schema: int = SCHEMA
    taken: Taken
    clock: Clock
    config: Config
    ipa_bits: int
    features: frozenset[Feature]
    memory: tuple[Area, ...]
    vcpus: tuple[VcpuState, ...]
    gic: GicState
    devices: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def vls(self) -> frozenset[int]:
        """The vector lengths of every vCPU, in bits."""
        return self.vcpus[0].vls

    def area(self, name: str) -> Area | None:
        """The memory of that name."""
        return next((area for area in self.memory if area.name == name), None)

    def document(self) -> dict[str, Json]:
        """The state as JSON has it."""
        document = encode(self)
        assert isinstance(document, dict)
        return document

    @classmethod
    def of(cls, document: object, name: str) -> State:
        """The state in a JSON document that may hold anything; ``name`` is what messages call it.

        Raises: UsageError, for a document that is none, is damaged, or is of a newer pyvmm.
        """
        if not isinstance(document, dict):
            raise Damaged(f"{name}: no state of a machine")
        schema = document.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise UsageError(
                f"{name}: a state of schema {schema}, and this pyvmm reads up to {SCHEMA}",
                hint="a newer pyvmm wrote it: use that one",
            )
        if schema != SCHEMA or type(schema) is not int:
            raise Damaged(f"{name}: a damaged state: its schema is {str(schema)[:40]}")
        try:
            state = decode(cls, document, "state")
            _check(state)
        except UsageError as error:
            raise Damaged(f"{name}: a damaged state: {error.message}") from None
        return state


def _check(state: State) -> None:
    """Refuse what is well formed and describes no machine.

    Raises: Damaged.
    """
    if [vcpu.id for vcpu in state.vcpus] != list(range(len(state.vcpus))) or not state.vcpus:
        raise Damaged("state.vcpus are not vCPUs 0, 1, 2 and so on")
    if any(vcpu.vls != state.vls for vcpu in state.vcpus):
        raise Damaged("state.vcpus differ in their vector lengths")
    areas = sorted(state.memory, key=lambda area: area.base)
    names = [area.name for area in areas]
    if len(set(names)) != len(names) or RAM not in names:
        raise Damaged("state.memory has no RAM, or two areas of one name")
    for area in areas:
        if not 32 <= state.ipa_bits <= 52 or area.size <= 0 or area.end > 1 << state.ipa_bits:
            raise Damaged(f"state.memory: {area.name} is not within the guest's addresses")
    for below, above in itertools.pairwise(areas):
        if below.end > above.base:
            raise Damaged(f"state.memory: {below.name} and {above.name} overlap")
    if not 0 < state.gic.nr_irqs <= 1024:  # Source: Linux, VGIC_NR_IRQS_LEGACY, KVM's limit
        raise Damaged(f"state.gic has {state.gic.nr_irqs} interrupts")
    for block in state.gic.blocks:
        if block.vcpu is not None and not 0 <= block.vcpu < len(state.vcpus):
            raise Damaged(f"state.gic: registers of vCPU {block.vcpu}, which there is not")


learn(State)
