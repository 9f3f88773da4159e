"""The state of a machine without its memory: one JSON document that a person can read.

Numbers that may be wider than 53 bits are hexadecimal text.  The keys of registers are KVM's ids,
of GIC registers their offsets, and of devices their names in the guest physical map
(pyvmm.layout).
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Final

from pyvmm.base.records import Record, made
from pyvmm.config import Config
from pyvmm.errors import UsageError
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import MpState, VcpuFeature
from pyvmm.kvm.vcpu import VcpuEvents
from pyvmm.layout import PVTIME, RAM, VMGENID
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

SCHEMA: Final = 3  # 2: areas of tags; config.cpu has pauth and ids. 3: the VM generation ID
LARGEST_REGISTER: Final = regs.size(regs.U2048)
MOST_REGISTERS: Final = 8192  # of a vCPU: KVM lists some 550
# Memory that KVM or pyvmm writes, by name, and what it holds
RENEWED: Final = {
    PVTIME.name: "stolen time, which the host writes",
    VMGENID.name: "the VM generation ID, new after each restore",
}
# The areas of memory tags: see tags.py.  No guest has so many address bits.
TAGS: Final = "-tags"  # the end of an area's name
TAGS_BASE: Final = 1 << 51
TAGS_SHARE: Final = 32  # bytes of memory for a byte of tags
# Items of a state's lists: some times what a save writes
MOST_ITEMS: Final = {"warnings": 100, "memory": 100, "devices": 100}
MOST_BLOCKS: Final = 4  # of GIC registers for each vCPU, and as many shared ones


def _write_registers(registers: dict[int, int]) -> Json:
    return {
        hexadecimal(reg_id, 16): hexadecimal(value, 2 * regs.size(reg_id))
        for reg_id, value in registers.items()
    }


def _read_registers(document: Any) -> dict[int, int]:
    """Return registers by id; each value must fit the size in its id."""
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


class Taken(Record, kw_only=True):
    """The place and time of a save.

    ``time`` is UTC, as 2026-11-26T21:40:00Z.  ``machine`` describes the computer, and
    ``emulated`` is whether pyvmm emulates it.  ``midr`` is MIDR_EL1 of vCPU 0.
    """

    time: str
    pyvmm: str
    kernel: str
    machine: str
    emulated: bool
    midr: Hex


class Clock(Record, kw_only=True):
    """The time when the guest stopped.

    ``virtual`` is the guest's CNTVCT_EL0, at ``hz`` ticks a second.  ``real_ns`` is the host's
    CLOCK_REALTIME.
    """

    hz: int
    virtual: Hex
    real_ns: int

    def __post_init__(self) -> None:
        if self.hz < 1 or self.virtual >> 64 or self.real_ns < 0:
            raise UsageError("the clock's values are out of range")


class Area(Record, kw_only=True):
    """A range of guest physical memory, or the tags of one."""

    name: str
    base: Hex
    size: int

    @property
    def end(self) -> int:
        """The first address after the range."""
        return self.base + self.size


class Events(Record, kw_only=True):
    """A vCPU's pending exceptions (KVM_GET_VCPU_EVENTS)."""

    serror_pending: bool = False
    serror_has_esr: bool = False
    serror_esr: Hex = 0

    @classmethod
    def of(cls, events: VcpuEvents) -> Events:
        """Return the events that KVM reported; it never reports an external abort as pending."""
        return cls(**{name: getattr(events, name) for name in cls.record_fields})

    def for_kvm(self) -> VcpuEvents:
        """Return the argument of KVM_SET_VCPU_EVENTS."""
        return VcpuEvents(**vars(self))


class VcpuState(Record, kw_only=True):
    """One vCPU: its features, and every register of KVM_GET_REG_LIST, in that order.

    ``vls`` are vector lengths in bits.  ``pvtime`` is the guest address of its stolen time.
    ``refused`` are registers that KVM listed but refused to read, with the errno's name.
    """

    id: int
    features: frozenset[VcpuFeature]
    vls: frozenset[int]
    mp_state: MpState
    events: Events
    pvtime: Hex | None
    registers: Registers
    refused: dict[str, str] = made(dict)


class GicBlock(Record, kw_only=True):
    """Registers of one part of an interrupt controller, per vCPU or shared (``vcpu`` is None).

    ``part`` names a table of pyvmm.snapshot.gic, which has the registers' numbers.
    """

    part: str
    vcpu: int | None
    registers: HexTable


class GicState(Record, kw_only=True):
    """The interrupt controller; ``kind`` is the Config's ``irqchip``."""

    kind: str
    nr_irqs: int
    blocks: tuple[GicBlock, ...]


class State(Record, kw_only=True):
    """A stopped machine without its memory.

    ``config`` describes the machine.  ``devices`` has each device's state by its name in the guest
    physical map.  ``warnings`` are those of the save: registers whose class pyvmm does not know.
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

    def document(self) -> dict[str, Json]:
        """Return the state as a JSON document."""
        return encode(self)

    @classmethod
    def of(cls, document: object, name: str) -> State:
        """Return the state in an untrusted JSON document; ``name`` is for messages.

        Raises: UsageError, if the document is damaged, or a newer pyvmm wrote it.
        """
        if not isinstance(document, dict):
            raise Damaged(f"{name}: not the state of a machine")
        schema = document.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise UsageError(
                f"{name}: its state has schema {schema}, this pyvmm reads up to {SCHEMA}",
                hint="use the newer pyvmm that wrote it",
            )
        if type(schema) is not int or not 0 < schema <= SCHEMA:
            raise Damaged(f"{name}: its state is damaged: the schema is {str(schema)[:40]}")
        try:
            state = decode(cls, document, "state")
            _check(state)
        except UsageError as error:
            raise Damaged(f"{name}: its state is damaged: {error.message}") from None
        return state


def _check(state: State) -> None:
    """Check that a well-formed state describes a machine.

    Raises: Damaged.
    """
    for field, most in MOST_ITEMS.items():
        if len(getattr(state, field)) > most:
            raise Damaged(f"state.{field}: more than {most}")
    if len(state.gic.blocks) > MOST_BLOCKS * (len(state.vcpus) + 1):
        raise Damaged(f"state.gic: {len(state.gic.blocks)} blocks")
    if [vcpu.id for vcpu in state.vcpus] != list(range(len(state.vcpus))) or not state.vcpus:
        raise Damaged("state.vcpus: the ids are not 0, 1, 2 and so on")
    if any(vcpu.vls != state.vls for vcpu in state.vcpus):
        raise Damaged("state.vcpus: the vector lengths differ")
    areas = sorted(state.memory, key=lambda area: area.base)
    names = [area.name for area in areas]
    if len(set(names)) != len(names) or RAM not in names:
        raise Damaged("state.memory: it lacks RAM, or has two areas with the same name")
    _check_tags(state)
    for area in areas:
        if area.name.endswith(TAGS):
            continue
        if not 32 <= state.ipa_bits <= 52 or area.size <= 0 or area.end > 1 << state.ipa_bits:
            raise Damaged(f"state.memory: {area.name} is outside the guest's addresses")
    for below, above in itertools.pairwise(areas):
        if below.end > above.base:
            raise Damaged(f"state.memory: {below.name} and {above.name} overlap")
    if not 0 < state.gic.nr_irqs <= 1024:  # Source: Linux, VGIC_NR_IRQS_LEGACY, KVM's limit
        raise Damaged(f"state.gic: {state.gic.nr_irqs} interrupts")
    for block in state.gic.blocks:
        if block.vcpu is not None and not 0 <= block.vcpu < len(state.vcpus):
            raise Damaged(f"state.gic: registers of vCPU {block.vcpu}, which does not exist")


def has_tags(name: str) -> bool:
    """Return whether the guest may tag the memory of that name."""
    return name not in RENEWED


def _check_tags(state: State) -> None:
    """Check that memory has its tags in an area, if the guest has tags.

    Raises: Damaged.
    """
    found = {area.name: (area.base, area.size) for area in state.memory if area.name.endswith(TAGS)}
    expected = {
        area.name + TAGS: (TAGS_BASE + area.base // TAGS_SHARE, area.size // TAGS_SHARE)
        for area in state.memory
        if Feature.MTE in state.features and not area.name.endswith(TAGS) and has_tags(area.name)
    }
    if found != expected:
        raise Damaged("state.memory: the areas of memory tags differ from those of memory")


learn(State)
