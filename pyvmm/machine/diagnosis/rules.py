"""The reason why a guest makes no progress, from what pyvmm sees of its stopped vCPUs.

Each rule compares all vCPUs at two moments, in order, and returns a sentence or None. The sentence
of a rule in RULES is certain: no guest that works, or waits on purpose, matches the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from pyvmm import layout
from pyvmm.arm64.esr import Esr, ExceptionClass, explain_esr
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.base.records import Record, made
from pyvmm.kvm.uapi import MpState

POLLS: Final = 8  # unclaimed accesses between two moments: fewer are not polling

# Instructions.  Source: Arm ARM DDI 0487, C6.2
WFI: Final = 0xD503_207F
BRANCH_TO_ITSELF: Final = 0x1400_0000

# Offsets in the exception vectors.  Source: Arm ARM DDI 0487, D1.3.1, table D1-5
VECTOR: Final = 0x80  # the size of one entry
SAME_LEVEL: Final = 0x200  # synchronous, from the current exception level with SP_ELx
SYNCHRONOUS: Final = frozenset({0x000, SAME_LEVEL, 0x400, 0x600})
VECTORS: Final = 0x800

WITH_ADDRESS: Final = frozenset({
    ExceptionClass.IABT_LOW, ExceptionClass.IABT_CUR, ExceptionClass.PC_ALIGN,
    ExceptionClass.DABT_LOW, ExceptionClass.DABT_CUR,
})  # fmt: skip

GROUPS: Final = 0b11  # of GICD_CTLR: an interrupt group is on.  Source: Arm IHI 0069, 12.9.4


class Gic(Record, kw_only=True):
    """A GICv3's registers that decide whether an interrupt can wake a vCPU."""

    distributor: int  # GICD_CTLR
    spis: int  # GICD_ISENABLER: the sum of the SPIs' registers


class VcpuLook(Record, kw_only=True):
    """A stopped vCPU at one moment.

    ``words`` are the instructions before and at PC, None where pyvmm cannot translate PC.
    ``blocked`` is whether KVM reports the vCPU as waiting, None before Linux 5.16. ``exits`` are
    counts by cause, and ``unclaimed`` is the address of the last access without a device.
    """

    id: int
    mp_state: int = MpState.RUNNABLE
    pc: int = 0
    pstate: int = 0
    esr: int = 0
    elr: int = 0
    far: int = 0
    vbar: int = 0
    mmu: bool = False
    words: tuple[int, int] | None = None
    blocked: bool | None = None
    timer: bool = False  # a timer is on and not masked: it ends a wait
    priority: int = 0  # ICC_PMR_EL1
    ppis: int = 0  # GICR_ISENABLER0, without the SGIs
    exits: dict[str, int] = made(dict)
    unclaimed: int = 0

    @property
    def is_off(self) -> bool:
        """Whether the vCPU is off by PSCI."""
        return self.mp_state == MpState.STOPPED

    @property
    def is_at_el1(self) -> bool:
        """Whether the registers of EL1 describe the vCPU's last exception."""
        return Pstate(self.pstate).M in (Mode.EL1t, Mode.EL1h)  # AArch32's modes have other numbers

    @property
    def waits(self) -> bool:
        """Whether the vCPU waits in WFI."""
        return bool(self.blocked) or (self.words is not None and self.words[0] == WFI)

    @property
    def vector(self) -> int | None:
        """The offset of PC in the exception vectors of EL1."""
        offset = self.pc - self.vbar
        return offset if self.is_at_el1 and 0 <= offset < VECTORS else None


class Look(Record, kw_only=True):
    """A machine at one moment; ``gic`` is None if its registers are not known.

    ``resets`` counts the guest's earlier resets, and ``was_reset`` is whether it has reset again.
    What the guest printed before the last of ``resets`` is not known.
    """

    vcpus: tuple[VcpuLook, ...]
    gic: Gic | None = None
    resets: int = 0
    was_reset: bool = False


Looks = Sequence[Look]
Rule = Callable[[Looks], str | None]


class ForeignRegion(NamedTuple):
    """A part of another machine's map; ``here`` is pyvmm's address of the same part."""

    base: int
    size: int
    machine: str
    part: str
    here: int


def _qemu(base: int, size: int, part: str, here: int) -> ForeignRegion:
    return ForeignRegion(base, size, "QEMU's virt machine", part, here)


# The maps of machines overlap: the first row that contains an address counts.  Sources: QEMU,
# hw/arm/virt.c, base_memmap; kvmtool before commit 45b4968e0de1 (2021), its UART; Broadcom, BCM2835
# and BCM2711 peripherals; Arm, Fixed Virtual Platforms reference (100966), "Base Platform memory
# map".
PLACES: Final = (
    ForeignRegion(0x3F8, 8, "lkvm of before 2021", "UART", layout.UART.base),
    ForeignRegion(0x3F20_1000, 0x1000, "a Raspberry Pi 3", "UART", layout.UART.base),
    ForeignRegion(0x3F21_5000, 0x1000, "a Raspberry Pi 3", "UART", layout.UART.base),
    ForeignRegion(0xFE20_1000, 0x1000, "a Raspberry Pi 4", "UART", layout.UART.base),
    ForeignRegion(0xFE21_5000, 0x1000, "a Raspberry Pi 4", "UART", layout.UART.base),
    ForeignRegion(0x1C09_0000, 0x1_0000, "Arm's FVP", "UART", layout.UART.base),
    _qemu(0x0800_0000, 0x2_0000, "interrupt controller", layout.GICD.base),
    _qemu(0x080A_0000, 0xF6_0000, "GIC redistributors", layout.GICD.base),
    _qemu(0x0900_0000, 0x1000, "UART", layout.UART.base),
    _qemu(0x0901_0000, 0x1000, "real-time clock", layout.RTC.base),
    _qemu(0x0A00_0000, 0x4000, "virtio devices", layout.VIRTIO.base),
    _qemu(0x4000_0000, 0x4000_0000, "RAM", layout.RAM_BASE),
)


def off(looks: Looks) -> str | None:
    """Report that every vCPU is off: none can switch another on."""
    if all(vcpu.is_off for look in looks for vcpu in look.vcpus):
        return "every vCPU is off by PSCI"
    return None


def faults(looks: Looks) -> str | None:
    """Report a vCPU whose exception vectors fault: each fault enters them again."""
    for vcpu in _running(looks):
        if all(_faults(before) for before in _of(looks, vcpu)) and _same(looks, vcpu, "elr"):
            where = f"vCPU {vcpu.id} faults for ever at {vcpu.elr:#x}"
            if vcpu.vbar == 0 and not vcpu.mmu:
                return f"{where}: it has no exception vectors (VBAR_EL1 is 0)"
            return f"{where}, in its exception vectors: {_cause(vcpu)}"
    return None


def _faults(vcpu: VcpuLook) -> bool:
    """Return whether the vCPU is in a vector, and took its last exception in the same vector."""
    entry = vcpu.vbar + SAME_LEVEL
    return vcpu.vector is not None and all(
        entry <= address < entry + VECTOR for address in (vcpu.pc, vcpu.elr)
    )


def hangs(looks: Looks) -> str | None:
    """Report a vCPU that branches to itself in a vector, with interrupts masked."""
    for vcpu in _running(looks):
        vector = vcpu.vector
        if (
            vector is not None
            and vector & -VECTOR in SYNCHRONOUS
            and vcpu.words is not None
            and vcpu.words[1] == BRANCH_TO_ITSELF
            and Pstate(vcpu.pstate).I
            and _same(looks, vcpu, "pc")
        ):
            return (
                f"vCPU {vcpu.id} stays at {vcpu.pc:#x}, in its exception vectors, after an "
                f"exception at {vcpu.elr:#x}: {_cause(vcpu)}"
            )
    return None


def _cause(vcpu: VcpuLook) -> str:
    """Return the cause of the last exception, with its address if it has one."""
    has_address = Esr(vcpu.esr).EC in WITH_ADDRESS
    return explain_esr(vcpu.esr) + (f" (FAR_EL1 {vcpu.far:#x})" if has_address else "")


def waits(looks: Looks) -> str | None:
    """Report that every vCPU which is on waits in WFI, and that nothing can end a wait."""
    for look in looks:
        on = [vcpu for vcpu in look.vcpus if not vcpu.is_off]
        if look.gic is None or not all(vcpu.waits and not vcpu.timer for vcpu in on):
            return None
        if any(_can_wake(look.gic, vcpu) for vcpu in on):
            return None
    first = next(_running(looks), None)
    if first is None:
        return None
    return f"vCPU {first.id} waits in WFI with no interrupt enabled (PC {first.pc:#x})"


def _can_wake(gic: Gic, vcpu: VcpuLook) -> bool:
    """Return whether the GIC can signal an interrupt to the vCPU. No vCPU runs to send an SGI."""
    return bool(gic.distributor & GROUPS and vcpu.priority and (gic.spis or vcpu.ppis))


def polls(looks: Looks) -> str | None:
    """Report a vCPU that accesses an address without a device, over and over."""
    for vcpu in _running(looks):
        new = _new_exits(looks, vcpu)
        reads, writes = new.get("unclaimed read", 0), new.get("unclaimed write", 0)
        if reads + writes >= POLLS and _same(looks, vcpu, "unclaimed"):
            verb = "polls" if reads else "writes for ever to"
            return f"vCPU {vcpu.id} {verb} {vcpu.unclaimed:#x}, {_place(vcpu.unclaimed)}"
    return None


def elsewhere(looks: Looks) -> str | None:
    """Report the last access of a guest without output to a device of another machine."""
    for vcpu in looks[-1].vcpus:
        if _known_place(vcpu.unclaimed) is not None:
            return f"vCPU {vcpu.id} accessed {vcpu.unclaimed:#x}, {_place(vcpu.unclaimed)}"
    return None


def neutral(looks: Looks) -> str | None:
    """Describe the state of the first vCPU that is on; name no cause."""
    vcpu = next(_running(looks), None)
    if vcpu is None:
        return None
    where = f"{_silence(looks[-1].resets)}: vCPU {vcpu.id}"
    if all(before.waits for before in _of(looks, vcpu)):
        return f"{where} waits for an interrupt at PC {vcpu.pc:#x}"
    new = {cause: count for cause, count in _new_exits(looks, vcpu).items() if cause != "INTR"}
    if not any(new.values()):
        return f"{where} runs at PC {vcpu.pc:#x} without an exit"
    most = max(new, key=new.__getitem__)
    return f'{where} runs at PC {vcpu.pc:#x}, most of its exits are "{most}"'


def resets_silently(resets: int) -> str:
    """Describe a guest that has reset after ``resets`` earlier ones, without output."""
    return f"{_silence(resets)}, and resets"


def _silence(resets: int) -> str:
    return "the guest has printed nothing" + (f" since reset {resets}" if resets else "")


RULES: Final[tuple[Rule, ...]] = (off, faults, hangs, polls, waits)
RULES_OF_SILENCE: Final[tuple[Rule, ...]] = (*RULES, elsewhere)


def diagnose(looks: Looks, *, silent: bool, sure: bool = False) -> str | None:
    """Return a sentence about a guest without progress, or None.

    ``silent``: the guest has sent no output. With ``sure`` the sentence must name a cause.
    """
    if looks[-1].was_reset:  # its vCPUs have ended
        return resets_silently(looks[-1].resets) if silent else None
    rules = RULES_OF_SILENCE if silent else RULES
    if silent and not sure:
        rules = (*rules, neutral)
    return next((said for rule in rules if (said := rule(looks))), None)


def _running(looks: Looks) -> Iterator[VcpuLook]:
    """Yield the vCPUs that are on at the last moment."""
    return (vcpu for vcpu in looks[-1].vcpus if not vcpu.is_off)


def _of(looks: Looks, vcpu: VcpuLook) -> Iterator[VcpuLook]:
    """Yield a vCPU at every moment."""
    return (look.vcpus[vcpu.id] for look in looks)


def _same(looks: Looks, vcpu: VcpuLook, field: str) -> bool:
    """Return whether a vCPU's field has the same value at all moments."""
    return len({getattr(before, field) for before in _of(looks, vcpu)}) == 1


def _new_exits(looks: Looks, vcpu: VcpuLook) -> dict[str, int]:
    """Return the exits of a vCPU from the first moment to the last, by cause."""
    before = looks[0].vcpus[vcpu.id].exits
    return {cause: count - before.get(cause, 0) for cause, count in vcpu.exits.items()}


def _known_place(address: int) -> ForeignRegion | None:
    return next((p for p in PLACES if p.base <= address < p.base + p.size), None)


def _place(address: int) -> str:
    """Return what other machines have at an address where this one has nothing."""
    place = _known_place(address)
    if place is None:
        return "where there is no device and no RAM"
    return f"where {place.machine} has its {place.part}; here it is at {place.here:#x}"
