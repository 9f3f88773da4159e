"""The state of interrupt controllers: tables of registers in restore order, save and restore.

Source: Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst, arm-vgic.rst and arm-vgic-its.rst;
names and offsets: Arm IHI 0069 (GICv3), chapter 12, and IHI 0048 (GICv2), chapter 4.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from pyvmm import layout
from pyvmm.arm64 import sysregs
from pyvmm.base.records import Record
from pyvmm.errors import KvmError, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.device import Device
from pyvmm.kvm.uapi import VgicCtrl, VgicGroup
from pyvmm.kvm.vgic import affinity
from pyvmm.machine.board import Board
from pyvmm.machine.irqchip import Irqchip
from pyvmm.snapshot.state import GicBlock, GicState

FIRST_SPI: Final = 32
ALL_32: Final = 0xFFFF_FFFF
V2_CPU_SHIFT: Final = 32  # KVM_DEV_ARM_VGIC_CPUID_SHIFT


class Use(Enum):
    """A method to save and restore a register."""

    RESTORE = "saved, and written back"
    RESTORE_IF_CHANGED = "saved, and written back if it differs: KVM rounds every written value"
    CHECK = "saved, and must read the same"
    CLEAR = "not saved: written as all ones, before the register that sets the same bits"


class RegisterSpec(Record):
    """One register, or registers at ``offset``, ``offset + step``, ... for many INTIDs.

    ``each`` is the number of INTIDs in one register; 0 means one register.  ``elsewhere`` has the
    bits that another row restores: they are written as 0.
    """

    name: str
    offset: int
    each: int = 0
    step: int = 4
    use: Use = Use.RESTORE
    may_lack: bool = False  # a GIC with fewer priority bits lacks it
    elsewhere: int = 0


class Part(Record, kw_only=True):
    """One table of registers: KVM's attribute group, and whether each vCPU has its own.

    Rows for many INTIDs are those of SGIs and PPIs if each vCPU has its own, else those of SPIs.
    """

    name: str
    group: int
    per_vcpu: bool = False
    rows: tuple[RegisterSpec, ...]


def _icc(name: str, *, may_lack: bool = False) -> RegisterSpec:
    return RegisterSpec(name, sysregs.ENCODINGS[name], may_lack=may_lack)


def _by_intid(
    prefix: str, base: int, table: Iterable[tuple[str, int, int]]
) -> Iterator[RegisterSpec]:
    """Yield rows for many INTIDs: name, offset, and INTIDs in one register."""
    for name, offset, each in table:
        yield RegisterSpec(prefix + name, base + offset, each)


# GICD_* and GICR_* have the same layout.
ICFGR: Final = ("ICFGR", 0xC00, 16)
SETTINGS: Final = ("IGROUPR", 0x080, 32), ICFGR, ("IPRIORITYR", 0x400, 4)
ISENABLER: Final = ("ISENABLER", 0x100, 32)
STATES: Final = ISENABLER, ("ISPENDR", 0x200, 32), ("ISACTIVER", 0x300, 32)
SGI_BASE: Final = 0x10000  # of a redistributor

DIST: Final = Part(
    name="dist",
    group=VgicGroup.DIST_REGS,
    rows=(
        RegisterSpec("GICD_IIDR", 0x0008),  # selects the revision that the kernel emulates
        RegisterSpec("GICD_CTLR", 0x0000),
        RegisterSpec("GICD_STATUSR", 0x0010),
        RegisterSpec("GICD_TYPER", 0x0004, use=Use.CHECK),
        *_by_intid("GICD_", 0, SETTINGS),
        RegisterSpec("GICD_IROUTER", 0x6000, 1, step=8),
        RegisterSpec("GICD_IROUTER+4", 0x6004, 1, step=8),
        *_by_intid("GICD_", 0, STATES),
    ),
)
REDIST: Final = Part(
    name="redist",
    group=VgicGroup.REDIST_REGS,
    per_vcpu=True,
    rows=(
        RegisterSpec("GICR_ICENABLER0", 0x10180, use=Use.CLEAR),  # a reset leaves SGIs enabled
        RegisterSpec("GICR_WAKER", 0x0014),
        RegisterSpec("GICR_STATUSR", 0x0010),
        # Before CTLR.EnableLPIs, which makes the kernel read the tables at these addresses.
        RegisterSpec("GICR_PROPBASER", 0x0070, use=Use.RESTORE_IF_CHANGED),
        RegisterSpec("GICR_PROPBASER+4", 0x0074, use=Use.RESTORE_IF_CHANGED),
        RegisterSpec("GICR_PENDBASER", 0x0078, use=Use.RESTORE_IF_CHANGED),
        RegisterSpec("GICR_PENDBASER+4", 0x007C, use=Use.RESTORE_IF_CHANGED),
        RegisterSpec("GICR_CTLR", 0x0000),
        *_by_intid("GICR_", SGI_BASE, (*SETTINGS, *STATES)),
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
# Lines last: a raised line makes its interrupt pending.
SPI_LINES: Final = Part(
    name="lines of SPIs",
    group=VgicGroup.LEVEL_INFO,
    rows=(RegisterSpec("lines", 0, 32, step=32),),
)
PPI_LINES: Final = Part(
    name="lines of PPIs",
    group=VgicGroup.LEVEL_INFO,
    per_vcpu=True,
    rows=(RegisterSpec("lines", 0, 32, step=32),),
)
ITS: Final = Part(
    name="its",
    group=VgicGroup.ITS_REGS,
    rows=(
        RegisterSpec("GITS_IIDR", 0x0004),
        RegisterSpec("GITS_CBASER", 0x0080, use=Use.RESTORE_IF_CHANGED),
        RegisterSpec("GITS_CREADR", 0x0090),
        RegisterSpec("GITS_CWRITER", 0x0088),
        *(
            RegisterSpec(f"GITS_BASER{n}", 0x0100 + 8 * n, use=Use.RESTORE_IF_CHANGED)
            for n in range(8)
        ),
        RegisterSpec("GITS_CTLR", 0x0000),  # after the tables: see _restore_part()
    ),
)
V2_DIST: Final = Part(
    name="dist",
    group=VgicGroup.DIST_REGS,
    rows=(
        RegisterSpec("GICD_IIDR", 0x008),  # since Linux 4.20 a write makes the groups writable
        RegisterSpec("GICD_CTLR", 0x000),
        RegisterSpec("GICD_TYPER", 0x004, use=Use.CHECK),
        RegisterSpec("GICD_ITARGETSR", 0x800, 4),
        *_by_intid("GICD_", 0, (*SETTINGS, *STATES)),
    ),
)
# A pending SGI has the CPUs that sent it, in GICD_SPENDSGIR.  A write to GICD_ISPENDR would add the
# vCPU itself to them.  Source: Linux, __set_pending() in arch/arm64/kvm/vgic/vgic-mmio.c
V2_SGIS: Final = 0xFFFF
V2_PRIVATE_STATES: Final = tuple(
    row.replace(elsewhere=V2_SGIS) if row.name == "GICD_ISPENDR" else row
    for row in _by_intid("GICD_", 0, STATES)
)
V2_PRIVATE: Final = Part(
    name="private",
    group=VgicGroup.DIST_REGS,
    per_vcpu=True,
    rows=(
        RegisterSpec("GICD_ICENABLER", 0x180, use=Use.CLEAR),
        *_by_intid("GICD_", 0, SETTINGS),
        *V2_PRIVATE_STATES,
        *(RegisterSpec(f"GICD_SPENDSGIR{n}", 0xF20 + 4 * n) for n in range(4)),
    ),
)
V2_CPU: Final = Part(
    name="cpu",
    group=VgicGroup.CPU_REGS,
    per_vcpu=True,
    rows=(
        RegisterSpec("GICC_CTLR", 0x00),
        RegisterSpec("GICC_PMR", 0x04),
        RegisterSpec("GICC_BPR", 0x08),
        RegisterSpec("GICC_ABPR", 0x1C),
        *(RegisterSpec(f"GICC_APR{n}", 0xD0 + 4 * n, may_lack=n > 0) for n in range(4)),
    ),
)

# The tables of each kind of GIC, in restore order.  The ITS, which is its own device, is last.
PARTS: Final[dict[str, tuple[Part, ...]]] = {
    "gicv3": (DIST, REDIST, CPU, SPI_LINES, PPI_LINES),
    "gicv3-its": (DIST, REDIST, CPU, SPI_LINES, PPI_LINES, ITS),
    "gicv2": (V2_DIST, V2_PRIVATE, V2_CPU),
}
# Bits that may read back changed: KVM rounds the base address of a table if the guest has never set
# it. Source: vgic_sanitise_field() in arch/arm64/kvm/vgic/vgic-mmio-v3.c
ROUNDED: Final = {"GICR_PROPBASER": 0xF80, "GICR_PENDBASER": 0xF80}


class GicRegister(NamedTuple):
    """One register: its row, its number in its part, and its name."""

    row: RegisterSpec
    number: int
    name: str


@functools.cache
def registers_of(part: Part, nr_irqs: int) -> tuple[GicRegister, ...]:
    """Return every register of a part, in restore order."""
    return tuple(_each_register(part, nr_irqs))


def _each_register(part: Part, nr_irqs: int) -> Iterator[GicRegister]:
    first, last = (0, FIRST_SPI) if part.per_vcpu else (FIRST_SPI, nr_irqs)
    for row in part.rows:
        if not row.each:
            yield GicRegister(row, row.offset, row.name)
            continue
        low, plus, high = row.name.partition("+")
        for intid in range(first, last, row.each):
            index = intid // row.each
            yield GicRegister(row, row.offset + index * row.step, f"{low}{index}{plus}{high}")


def names(kind: str, part: str, nr_irqs: int) -> dict[int, str]:
    """Return the names of a part's registers by number; empty for an unknown part."""
    for known in PARTS.get(kind, ()):
        if known.name == part:
            return {register.number: register.name for register in registers_of(known, nr_irqs)}
    return {}


def uses_spi(state: GicState, spi: int) -> bool:
    """Return whether a saved guest has enabled a shared interrupt."""
    return _of_spi(state, ISENABLER, spi) != 0


def sets_up_spi(state: GicState, spi: int, unused: int) -> bool:
    """Return whether a saved guest has enabled a shared interrupt, or set it up and masked it.

    Linux masks its interrupts while it is suspended. A driver has then made this one an edge or a
    level, unlike an ``unused`` interrupt.
    """
    return uses_spi(state, spi) or _of_spi(state, ICFGR, spi) != _of_spi(state, ICFGR, unused)


def _of_spi(state: GicState, table: tuple[str, int, int], spi: int) -> int:
    """Return what a table of GICD registers has about a shared interrupt."""
    _, offset, each = table
    intid = FIRST_SPI + spi
    number, width = offset + intid // each * 4, 32 // each
    values = [block.registers.get(number, 0) for block in state.blocks if block.part == DIST.name]
    return sum(values) >> intid % each * width & (1 << width) - 1


class GicRegisters:
    """Access to a GIC's registers by part, vCPU and number, for use while no vCPU runs."""

    def __init__(self, irqchip: Irqchip, mpidrs: Sequence[int], nr_irqs: int) -> None:
        self._irqchip = irqchip
        self._mpidrs = mpidrs
        self.nr_irqs = nr_irqs

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tables of this kind of controller."""
        return PARTS[self._irqchip.name]

    def vcpus(self, part: Part) -> Iterator[int | None]:
        """Yield the vCPUs that have the part, or None if it is shared."""
        yield from range(len(self._mpidrs)) if part.per_vcpu else (None,)

    def read(
        self, part: Part, vcpu: int | None, numbers: Iterable[int]
    ) -> dict[int, int | KvmError]:
        """Read registers by number; a register that KVM refuses gives its error."""
        attributes = {self._attribute(vcpu, number): number for number in numbers}
        found = self._device(part).get_attrs(part.group, attributes)
        return {attributes[attribute]: value for attribute, value in found.items()}

    def write(self, part: Part, vcpu: int | None, values: Mapping[int, int]) -> None:
        """Write registers in the given order.

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
    """Let the kernel write an ITS's tables and pending LPIs to guest memory."""
    if irqchip.its is not None:
        irqchip.its.device.set_attr(VgicGroup.CTRL, VgicCtrl.ITS_SAVE_TABLES)
        irqchip.gic.device.set_attr(VgicGroup.CTRL, VgicCtrl.VGIC_SAVE_PENDING_TABLES)


def gic_registers(board: Board) -> GicRegisters:
    """Return the access to the registers of a machine's interrupt controller."""
    mpidrs = [vcpu.get_one_reg(regs.MPIDR_EL1) for vcpu in board.vcpus]
    return GicRegisters(board.irqchip, mpidrs, layout.NR_IRQS)


def save_gic(gic: GicRegisters, kind: str) -> GicState:
    """Read the state of an interrupt controller."""
    blocks = []
    for part in gic.parts:
        for vcpu in gic.vcpus(part):
            rows = {
                register.number: register.row
                for register in registers_of(part, gic.nr_irqs) if register.row.use is not Use.CLEAR
            }  # fmt: skip
            registers = {}
            for number, found in gic.read(part, vcpu, rows).items():
                if not isinstance(found, KvmError):
                    registers[number] = found
                elif not (rows[number].may_lack and found.errno in (errno.EINVAL, errno.ENXIO)):
                    raise found
            blocks.append(GicBlock(part=part.name, vcpu=vcpu, registers=registers))
    return GicState(kind=kind, nr_irqs=gic.nr_irqs, blocks=tuple(blocks))


def restore_gic(gic: GicRegisters, state: GicState, irqchip: Irqchip) -> list[str]:
    """Restore an interrupt controller; guest RAM is restored already.

    Returns:
        A line for each register that reads back changed and should not.

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
    raise VmmError(f"the snapshot has no {_part_name(part, vcpu)}")


def _restore_part(
    gic: GicRegisters, part: Part, vcpu: int | None, saved: dict[int, int], irqchip: Irqchip
) -> None:
    here = _reset_values(gic, part, vcpu)
    values: dict[int, int] = {}
    for register in registers_of(part, gic.nr_irqs):
        number, use = register.number, register.row.use
        if register.name == "GITS_CTLR":
            gic.write(part, vcpu, values)
            values = {}
            assert irqchip.its is not None
            irqchip.its.device.set_attr(VgicGroup.CTRL, VgicCtrl.ITS_RESTORE_TABLES)
        if use is Use.CLEAR:
            values[number] = ALL_32
        elif number in saved and (
            use is Use.RESTORE or (use is Use.RESTORE_IF_CHANGED and here[number] != saved[number])
        ):
            values[number] = saved[number] & ~register.row.elsewhere
    gic.write(part, vcpu, values)


def _reset_values(gic: GicRegisters, part: Part, vcpu: int | None) -> dict[int, int]:
    """Return the reset values of registers that are written only if they differ."""
    changing = [
        register.number
        for register in registers_of(part, gic.nr_irqs)
        if register.row.use is Use.RESTORE_IF_CHANGED
    ]
    return values_of(gic.read(part, vcpu, changing))


def values_of(read: Mapping[int, int | KvmError]) -> dict[int, int]:
    """Return the values of registers that were read.

    Raises: KvmError, if KVM refused a register.
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
    here = {register.number: register.name for register in registers_of(part, gic.nr_irqs)}
    found = values_of(gic.read(part, vcpu, [number for number in here if number in saved]))
    for number, value in found.items():
        if (value ^ saved[number]) & ~ROUNDED.get(here[number], 0):
            yield (
                f"{here[number]} of {_part_name(part, vcpu)} was {saved[number]:#x} "
                f"and reads back as {value:#x}"
            )


def _part_name(part: Part, vcpu: int | None) -> str:
    return f"GIC part {part.name}" + ("" if vcpu is None else f" of vCPU {vcpu}")
