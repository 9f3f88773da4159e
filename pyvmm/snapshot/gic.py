"""The registers of interrupt controllers that make up their state: tables, and who walks them.

Each table is in the order of restoring.
Source: Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst, arm-vgic.rst and arm-vgic-its.rst;
names and offsets: Arm IHI 0069 (GICv3), chapter 12, and IHI 0048 (GICv2), chapter 4.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from pyvmm import layout
from pyvmm.arm64 import sysregs
from pyvmm.errors import KvmError, VmmError
from pyvmm.kvm.device import Device
from pyvmm.kvm.uapi import VgicCtrl, VgicGroup
from pyvmm.kvm.vgic import affinity
from pyvmm.machine.board import MPIDR_EL1, Board
from pyvmm.machine.irqchip import Irqchip
from pyvmm.snapshot.state import GicBlock, GicState

FIRST_SPI: Final = 32
ALL_32: Final = 0xFFFF_FFFF
V2_CPU_SHIFT: Final = 32  # KVM_DEV_ARM_VGIC_CPUID_SHIFT


class Use(Enum):
    """What is done with a register."""

    KEEP = "saved, and written back"
    CHANGE = "saved, and written back where it is another: KVM rounds whatever is written"
    CHECK = "saved, and must be the same"
    CLEAR = "not saved: all ones are written, before what sets the same bits"


class Row(NamedTuple):
    """Registers at ``offset``, ``offset + 4``, ...: as many as ``each`` says.

    ``each`` is how many INTIDs one register is for; 0: there is one register.  ``first`` is the
    INTID of the first that counts: SPIs for a distributor, whose private ones are elsewhere.
    """

    name: str
    offset: int
    each: int = 0
    first: int = 0
    step: int = 4
    use: Use = Use.KEEP
    may_lack: bool = False  # a GIC with fewer priority bits has not got it


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One table: where its registers are reached, whether each vCPU has them, how wide they are."""

    name: str
    group: int
    per_vcpu: bool
    rows: tuple[Row, ...]
    last: int = 0  # INTIDs from there on are not this part's; 0: as many as the GIC has


def _icc(name: str, *, may_lack: bool = False) -> Row:
    return Row(name, sysregs.ENCODINGS[name], may_lack=may_lack)


DIST: Final = Part(
    name="dist",
    group=VgicGroup.DIST_REGS,
    per_vcpu=False,
    rows=(
        Row("GICD_IIDR", 0x0008),  # chooses the revision that the kernel is to be
        Row("GICD_CTLR", 0x0000),
        Row("GICD_STATUSR", 0x0010),
        Row("GICD_TYPER", 0x0004, use=Use.CHECK),
        Row("GICD_IGROUPR", 0x0080, 32, FIRST_SPI),
        Row("GICD_ICFGR", 0x0C00, 16, FIRST_SPI),
        Row("GICD_IPRIORITYR", 0x0400, 4, FIRST_SPI),
        Row("GICD_IROUTER", 0x6000, 1, FIRST_SPI, step=8),
        Row("GICD_IROUTER+4", 0x6004, 1, FIRST_SPI, step=8),
        Row("GICD_ISENABLER", 0x0100, 32, FIRST_SPI),
        Row("GICD_ISPENDR", 0x0200, 32, FIRST_SPI),
        Row("GICD_ISACTIVER", 0x0300, 32, FIRST_SPI),
    ),
)
REDIST: Final = Part(
    name="redist",
    group=VgicGroup.REDIST_REGS,
    per_vcpu=True,
    last=FIRST_SPI,
    rows=(
        Row("GICR_ICENABLER0", 0x10180, use=Use.CLEAR),  # a reset leaves SGIs enabled
        Row("GICR_WAKER", 0x0014),
        Row("GICR_STATUSR", 0x0010),
        # Before CTLR.EnableLPIs, which makes the kernel read the tables that they name.
        Row("GICR_PROPBASER", 0x0070, use=Use.CHANGE),
        Row("GICR_PROPBASER+4", 0x0074, use=Use.CHANGE),
        Row("GICR_PENDBASER", 0x0078, use=Use.CHANGE),
        Row("GICR_PENDBASER+4", 0x007C, use=Use.CHANGE),
        Row("GICR_CTLR", 0x0000),
        Row("GICR_IGROUPR", 0x10080, 32),
        Row("GICR_ICFGR", 0x10C00, 16),
        Row("GICR_IPRIORITYR", 0x10400, 4),
        Row("GICR_ISENABLER", 0x10100, 32),
        Row("GICR_ISPENDR", 0x10200, 32),
        Row("GICR_ISACTIVER", 0x10300, 32),
    ),
)
CPU: Final = Part(
    name="cpu",
    group=VgicGroup.CPU_SYSREGS,
    per_vcpu=True,
    rows=(
        _icc("ICC_SRE_EL1"),
        _icc("ICC_CTLR_EL1"),
        _icc("ICC_IGRPEN0_EL1"),
        _icc("ICC_IGRPEN1_EL1"),
        _icc("ICC_PMR_EL1"),
        _icc("ICC_BPR0_EL1"),
        _icc("ICC_BPR1_EL1"),
        *(_icc(f"ICC_AP{group}R{n}_EL1", may_lack=n > 0) for group in (0, 1) for n in range(4)),
    ),
)
# Lines last: they make pending what the registers above had not.
SPI_LINES: Final = Part(
    name="lines of SPIs",
    group=VgicGroup.LEVEL_INFO,
    per_vcpu=False,
    rows=(Row("lines", 0, 32, FIRST_SPI, step=32),),
)
PPI_LINES: Final = Part(
    name="lines of PPIs",
    group=VgicGroup.LEVEL_INFO,
    per_vcpu=True,
    last=FIRST_SPI,
    rows=(Row("lines", 0, 32, step=32),),
)
ITS: Final = Part(
    name="its",
    group=VgicGroup.ITS_REGS,
    per_vcpu=False,
    rows=(
        Row("GITS_IIDR", 0x0004),
        Row("GITS_CBASER", 0x0080, use=Use.CHANGE),
        Row("GITS_CREADR", 0x0090),
        Row("GITS_CWRITER", 0x0088),
        *(Row(f"GITS_BASER{n}", 0x0100 + 8 * n, use=Use.CHANGE) for n in range(8)),
        Row("GITS_CTLR", 0x0000),  # after the tables: see restore_its()
    ),
)
V2_BANKED: Final = tuple(
    Row(name, offset, each)
    for name, offset, each in (
        ("GICD_IGROUPR", 0x080, 32), ("GICD_ICFGR", 0xC00, 16), ("GICD_IPRIORITYR", 0x400, 4),
        ("GICD_ISENABLER", 0x100, 32), ("GICD_ISPENDR", 0x200, 32), ("GICD_ISACTIVER", 0x300, 32),
    )
)  # fmt: skip
V2_DIST: Final = Part(
    name="dist",
    group=VgicGroup.DIST_REGS,
    per_vcpu=False,
    rows=(
        Row("GICD_IIDR", 0x008),  # since Linux 4.20 what makes the groups writable
        Row("GICD_CTLR", 0x000),
        Row("GICD_TYPER", 0x004, use=Use.CHECK),
        Row("GICD_ITARGETSR", 0x800, 4, FIRST_SPI),
        *(row._replace(first=FIRST_SPI) for row in V2_BANKED),
    ),
)
V2_PRIVATE: Final = Part(
    name="private",
    group=VgicGroup.DIST_REGS,
    per_vcpu=True,
    last=FIRST_SPI,
    rows=(
        Row("GICD_ICENABLER", 0x180, use=Use.CLEAR),
        *V2_BANKED,
        *(Row(f"GICD_SPENDSGIR{n}", 0xF20 + 4 * n) for n in range(4)),
    ),
)
V2_CPU: Final = Part(
    name="cpu",
    group=VgicGroup.CPU_REGS,
    per_vcpu=True,
    rows=(
        Row("GICC_CTLR", 0x00),
        Row("GICC_PMR", 0x04),
        Row("GICC_BPR", 0x08),
        Row("GICC_ABPR", 0x1C),
        *(Row(f"GICC_APR{n}", 0xD0 + 4 * n, may_lack=n > 0) for n in range(4)),
    ),
)

# What each --irqchip is made of, in the order of restoring; the ITS, a device of its own, last.
PARTS: Final[dict[str, tuple[Part, ...]]] = {
    "gicv3": (DIST, REDIST, CPU, SPI_LINES, PPI_LINES),
    "gicv3-its": (DIST, REDIST, CPU, SPI_LINES, PPI_LINES, ITS),
    "gicv2": (V2_DIST, V2_PRIVATE, V2_CPU),
}
# What may read back otherwise: KVM rounds bases of tables that the guest never placed.
# Source: vgic_sanitise_field() in arch/arm64/kvm/vgic/vgic-mmio-v3.c
ROUNDED: Final = {"GICR_PROPBASER": 0xF80, "GICR_PENDBASER": 0xF80}


class Place(NamedTuple):
    """One register: its row, its number in its part, and its name."""

    row: Row
    number: int
    name: str


@functools.cache
def places(part: Part, nr_irqs: int) -> tuple[Place, ...]:
    """Every register of a part, in the order of restoring."""
    return tuple(_places(part, nr_irqs))


def _places(part: Part, nr_irqs: int) -> Iterator[Place]:
    for row in part.rows:
        if not row.each:
            yield Place(row, row.offset, row.name)
            continue
        low, plus, high = row.name.partition("+")
        for intid in range(row.first, part.last or nr_irqs, row.each):
            index = intid // row.each
            yield Place(row, row.offset + index * row.step, f"{low}{index}{plus}{high}")


def names(kind: str, part: str, nr_irqs: int) -> dict[int, str]:
    """What each register of a part is called; nothing for a part that is not known."""
    for known in PARTS.get(kind, ()):
        if known.name == part:
            return {place.number: place.name for place in places(known, nr_irqs)}
    return {}


class GicRegisters:
    """An interrupt controller's registers, by part, vCPU and number; no vCPU runs."""

    def __init__(self, irqchip: Irqchip, mpidrs: Sequence[int], nr_irqs: int) -> None:
        self._irqchip = irqchip
        self._mpidrs = mpidrs
        self.nr_irqs = nr_irqs

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tables of this kind of controller."""
        return PARTS[self._irqchip.name]

    def vcpus(self, part: Part) -> Iterator[int | None]:
        """Whose registers a part has: every vCPU's, or nobody's own."""
        yield from range(len(self._mpidrs)) if part.per_vcpu else (None,)

    def read(
        self, part: Part, vcpu: int | None, numbers: Iterable[int]
    ) -> dict[int, int | KvmError]:
        """Registers by their numbers; of one that KVM refuses, its error."""
        attributes = {self._attribute(vcpu, number): number for number in numbers}
        found = self._device(part).get_attrs(part.group, attributes)
        return {attributes[attribute]: value for attribute, value in found.items()}

    def write(self, part: Part, vcpu: int | None, values: Mapping[int, int]) -> None:
        """Write registers in their order, as user space may.

        Raises: KvmError.
        """
        attributes = {self._attribute(vcpu, number): value for number, value in values.items()}
        self._device(part).set_attrs(part.group, attributes)

    def _device(self, part: Part) -> Device:
        if part is ITS:
            assert self._irqchip.its is not None
            return self._irqchip.its.device
        return self._irqchip.gic.device

    def _attribute(self, vcpu: int | None, number: int) -> int:
        if vcpu is None:
            return number
        if self._irqchip.name == "gicv2":
            return vcpu << V2_CPU_SHIFT | number
        return affinity(self._mpidrs[vcpu]) | number


def save_tables(irqchip: Irqchip) -> None:
    """Have the kernel write what an ITS knows, and pending LPIs, to the guest's memory."""
    if irqchip.its is not None:
        irqchip.its.device.set_attr(VgicGroup.CTRL, VgicCtrl.ITS_SAVE_TABLES)
        irqchip.gic.device.set_attr(VgicGroup.CTRL, VgicCtrl.VGIC_SAVE_PENDING_TABLES)


def gic_registers(board: Board) -> GicRegisters:
    """Return a machine's interrupt controller as its registers."""
    mpidrs = [vcpu.get_one_reg(MPIDR_EL1) for vcpu in board.vcpus]
    return GicRegisters(board.irqchip, mpidrs, layout.NR_IRQS)


def save_gic(gic: GicRegisters, kind: str) -> GicState:
    """The state of an interrupt controller."""
    blocks = []
    for part in gic.parts:
        for vcpu in gic.vcpus(part):
            kept = {
                place.number: place.row
                for place in places(part, gic.nr_irqs) if place.row.use is not Use.CLEAR
            }  # fmt: skip
            registers = {}
            for number, found in gic.read(part, vcpu, kept).items():
                if not isinstance(found, KvmError):
                    registers[number] = found
                elif not (kept[number].may_lack and found.errno in (errno.EINVAL, errno.ENXIO)):
                    raise found
            blocks.append(GicBlock(part=part.name, vcpu=vcpu, registers=registers))
    return GicState(kind=kind, nr_irqs=gic.nr_irqs, blocks=tuple(blocks))


def restore_gic(gic: GicRegisters, state: GicState, irqchip: Irqchip) -> list[str]:
    """Write an interrupt controller's state back; guest RAM is there.

    Returns:
        What reads back otherwise and should not, a line each.

    Raises:
        KvmError: the kernel refuses a register.
        VmmError: the state lacks a part of this kind of controller.
    """
    for part in gic.parts:
        for vcpu in gic.vcpus(part):
            _restore_part(gic, part, vcpu, _block(state, part, vcpu), irqchip)
    return [line for part in gic.parts for vcpu in gic.vcpus(part)
            for line in _differences(gic, part, vcpu, _block(state, part, vcpu))]  # fmt: skip


def _block(state: GicState, part: Part, vcpu: int | None) -> dict[int, int]:
    for block in state.blocks:
        if (block.part, block.vcpu) == (part.name, vcpu):
            return block.registers
    raise VmmError(f"the snapshot has no {_whose(part, vcpu)}")


def _restore_part(
    gic: GicRegisters, part: Part, vcpu: int | None, saved: dict[int, int], irqchip: Irqchip
) -> None:
    here = _rounded_here(gic, part, vcpu)
    values: dict[int, int] = {}
    for place in places(part, gic.nr_irqs):
        number, use = place.number, place.row.use
        if place.name == "GITS_CTLR":
            gic.write(part, vcpu, values)
            values = {}
            assert irqchip.its is not None
            irqchip.its.device.set_attr(VgicGroup.CTRL, VgicCtrl.ITS_RESTORE_TABLES)
        if use is Use.CLEAR:
            values[number] = ALL_32
        elif number in saved and (
            use is Use.KEEP or (use is Use.CHANGE and here[number] != saved[number])
        ):
            values[number] = saved[number]
    gic.write(part, vcpu, values)


def _rounded_here(gic: GicRegisters, part: Part, vcpu: int | None) -> dict[int, int]:
    """What a reset gave the registers that are to be written only where they are another."""
    changing = [place.number for place in places(part, gic.nr_irqs) if place.row.use is Use.CHANGE]
    return _values(gic.read(part, vcpu, changing))


def _values(read: Mapping[int, int | KvmError]) -> dict[int, int]:
    """What was read, where none was refused.

    Raises: KvmError.
    """
    values = {}
    for number, found in read.items():
        if isinstance(found, KvmError):
            raise found
        values[number] = found
    return values


def _differences(
    gic: GicRegisters, part: Part, vcpu: int | None, saved: dict[int, int]
) -> Iterator[str]:
    here = {place.number: place.name for place in places(part, gic.nr_irqs)}
    found = _values(gic.read(part, vcpu, [number for number in here if number in saved]))
    for number, value in found.items():
        if (value ^ saved[number]) & ~ROUNDED.get(here[number], 0):
            yield (
                f"{here[number]} of {_whose(part, vcpu)} was {saved[number]:#x} "
                f"and reads back as {value:#x}"
            )


def _whose(part: Part, vcpu: int | None) -> str:
    return f"GIC part {part.name}" + ("" if vcpu is None else f" of vCPU {vcpu}")
